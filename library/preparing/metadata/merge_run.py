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
from library.preparing.metadata.metadata_files import Entry
from library.preparing.metadata.picture_names import NameMatch, match_names, picture_names
from library.preparing.metadata.picture_texts import read_texts
from library.preparing.metadata.rewriting import Rewriting
from library.preparing.metadata.tag_lists import normal_tags
from library.preparing.options.folder import PictureFolderOptions
from library.preparing.options.metadata import MergeOptions
from library.preparing.outcome import raise_faults
from library.preparing.pictures import Pictures, find_pictures, text_file_of
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
    rewriting = Rewriting(merge.in_json, "--in_json", merge.out_json, is_overwrite=merge.overwrite)
    existing = rewriting.read()
    pictures = find_pictures(folder.train_data_dir, is_recursive=folder.recursive)
    names = picture_names(pictures, is_full_path=merge.full_path)
    match = match_names(merge.in_json or merge.out_json, existing, names, pictures.root)
    known, faults = _known_of(pictures, merge, key, normal)
    merged = merge_entries(existing, match.renamed, {names[path]: values for path, values in known.items()})
    if merged.entries:
        rewriting.write(merged.entries)
    if is_verbose:
        _tell_pictures(merged, key)
    _tell_empty(merged, {path: names[path] for path, values in known.items() if values.get(key) == ""}, merge.extension)
    if merged.replaced:
        what = "texts of entries that the text files replace: %d (%s); corrections belong into the text files."
        logger.warning(what, len(merged.replaced), first_names(list(merged.replaced)))
    _tell(merge.out_json, merged, match, pictures, faults)
    raise_faults(faults)


def _known_of(
    pictures: Pictures, merge: MergeOptions, key: str, normal: Callable[[str], str]
) -> tuple[dict[Path, Entry], list[Fault]]:
    """{picture: its text and size} of those that can be used, and why the others cannot."""
    sizes, faults = _sizes_of(pictures)
    broken = [fault.picture for fault in faults]
    found = read_texts(pictures, merge.extension, merge.caption_encoding, passed=broken)
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


def _tell_empty(merged: Merged, empty: Mapping[Path, str], extension: str) -> None:
    kept = set(merged.unemptied)
    kinds = (("entries keep the text that they have", True), ("an empty text is noted", False))
    for what, is_kept in kinds:
        files = [text_file_of(path, extension).name for path, name in empty.items() if (name in kept) is is_kept]
        if files:
            logger.warning("files without text, %s: %d (%s).", what, len(files), first_names(files))


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
        "%s: %s (%d new, %d updated, %d as they were, %d of other pictures)%s.",
        *(
            out,
            counted(len(merged.entries), "entry", "entries"),
            len(merged.new),
            len(merged.updated),
            len(merged.unchanged),
            len(match.others),
        ),
        passed,
    )
