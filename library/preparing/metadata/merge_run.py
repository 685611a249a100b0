"""Captions or tags of a folder of pictures put into a metadata file: reads, merges, writes, and says what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library.data.files.header_reading import HeaderReader
from library.data.findings import Fault
from library.data.problems import counted, dataset_error, first_names
from library.log import get_logger
from library.preparing.metadata.merging import Merged, merge_entries
from library.preparing.metadata.metadata_files import (
    Entries,
    Entry,
    check_output,
    read_metadata_file,
    refuse_loss,
    write_metadata_file,
)
from library.preparing.metadata.picture_names import NameMatch, match_names, picture_names
from library.preparing.metadata.picture_texts import read_texts
from library.preparing.metadata.tag_lists import normal_tags
from library.preparing.options.folder import PictureFolderOptions
from library.preparing.options.metadata import MergeOptions
from library.preparing.outcome import raise_faults
from library.preparing.pictures import Pictures, find_pictures
from library.records import Size

logger = get_logger(__name__)


def merge_captions(folder: PictureFolderOptions, merge: MergeOptions, *, is_verbose: bool) -> None:
    """Put captions into a metadata file. All their lines are kept; a training without wildcards uses the first.

    Args:
        folder: Which pictures.
        merge: Which files.
        is_verbose: Tell what becomes of each picture.

    Raises:
        UserError: Something cannot be read or written, or pictures were passed over, after all others are done.
    """
    _merge(folder, merge, "caption", str, is_verbose)


def merge_tags(folder: PictureFolderOptions, merge: MergeOptions, *, is_verbose: bool) -> None:
    """Put tags into a metadata file, each once; arguments and errors as for `merge_captions`."""
    _merge(folder, merge, "tags", normal_tags, is_verbose)


def _merge(
    folder: PictureFolderOptions, merge: MergeOptions, key: str, normal: Callable[[str], str], is_verbose: bool
) -> None:
    assert folder.train_data_dir is not None and merge.out_json is not None
    out = merge.out_json
    check_output(out)
    existing, source = _existing_entries(out, merge.in_json)
    pictures = find_pictures(folder.train_data_dir, is_recursive=folder.recursive)
    names = picture_names(pictures, is_full_path=merge.full_path)
    match = match_names(source, existing, names, pictures.root)
    known, faults = _known_of(pictures, merge.extension, key, normal)
    merged = merge_entries(existing, match.renamed, {names[path]: values for path, values in known.items()})
    if not _is_same(source, out):
        refuse_loss(out, merged.entries, f"merge into it with --in_json {out}")
    if merged.entries:
        write_metadata_file(out, merged.entries)
    if is_verbose:
        _tell_pictures(merged, key)
    _tell(out, merged, match, pictures, faults)
    raise_faults(faults)


def _existing_entries(out: Path, in_json: Path | None) -> tuple[Entries, Path]:
    """Entries that are there already, and the file they are from."""
    if in_json is not None:
        return read_metadata_file(in_json, "--in_json"), in_json
    return (read_metadata_file(out, "OUT_JSON") if out.exists() else {}), out


def _is_same(source: Path, out: Path) -> bool:
    return source == out or (out.exists() and source.samefile(out))


def _known_of(
    pictures: Pictures, extension: str, key: str, normal: Callable[[str], str]
) -> tuple[dict[Path, Entry], list[Fault]]:
    """{picture: its text and size} of those that can be used, and why the others cannot."""
    found = read_texts(pictures, extension)
    sizes, faults = _sizes_of(pictures)
    faults += [fault for fault in found.faults if fault.picture in sizes]
    unusable = {fault.picture for fault in faults}
    known: dict[Path, Entry] = {}
    for path in pictures.paths:
        if path not in unusable:
            text = {key: normal(found.texts[path])} if path in found.texts else {}
            known[path] = {**text, "image_size": list(sizes[path])}
    return known, sorted(faults)


def _sizes_of(pictures: Pictures) -> tuple[Mapping[Path, Size], list[Fault]]:
    reader = HeaderReader()
    reader.read(pictures.paths)
    if reader.unread:
        raise dataset_error("TRAIN_DATA_DIR", [f"{path} {problem}" for path, problem in reader.unread.items()])
    sizes = {path: header.size for path, header in reader.headers.items()}
    return sizes, [Fault(path, problem) for path, problem in reader.problems.items()]


def _tell_pictures(merged: Merged, key: str) -> None:
    kinds = (("new", merged.new), ("updated", merged.updated), ("as it was", merged.unchanged))
    for kind, names in kinds:
        for name in names:
            logger.info("%s: %s, %s", name, kind, _shown(merged.entries[name], key))


def _shown(entry: Mapping[str, Any], key: str) -> str:
    return f"{key} {entry[key]!r}" if key in entry else f"no {key}"


def _tell(out: Path, merged: Merged, match: NameMatch, pictures: Pictures, faults: list[Fault]) -> None:
    if pictures.left_out:
        number = counted(len(pictures.left_out), "file")
        logger.warning(
            "%s of types that cannot be read: %s.", number, first_names(list(map(str, pictures.left_out)), 3)
        )
    if match.renamed:
        pairs = [f'"{old}" is now "{new}"' for old, new in match.renamed.items()]
        logger.info("names spelled in another way: %d (%s).", len(pairs), first_names(pairs, 3))
    if match.absent:
        named = first_names(list(match.absent))
        what = "entries kept whose pictures are not there: %d (%s); a training refuses them."
        logger.warning(what, len(match.absent), named)
    passed = f", passed over {counted(len(faults), 'picture')}" if faults else ""
    logger.info(
        "%s: %d entries (%d new, %d updated, %d as they were, %d of other pictures)%s.",
        *(out, len(merged.entries), len(merged.new), len(merged.updated), len(merged.unchanged), len(match.others)),
        passed,
    )
