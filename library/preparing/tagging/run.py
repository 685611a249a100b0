"""A run of the tagger: find pictures and model, tag what is not tagged yet, tell what was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from library.data.files.text_files import is_whole
from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.log import get_logger
from library.preparing.options.tagging import TaggingOptions
from library.preparing.pictures import Pictures, find_pictures, text_file_of
from library.preparing.shares import Shares
from library.preparing.tagging.choosing import TagChooser, TagRules
from library.preparing.tagging.journal import Found, Journal
from library.preparing.tagging.labels import read_labels
from library.preparing.tagging.loop import Tagged, Tagging
from library.preparing.tagging.metadata_output import Existing, merged, read_existing, renamed_entries, write_entries
from library.preparing.tagging.model_files import TaggerFiles, TaggerPlace, find_tagger
from library.preparing.tagging.onnx_model import onnxruntime
from library.preparing.tagging.rules import rules_of, warn_of_limits
from library.preparing.tagging.text_output import TextOutput
from library.preparing.text_writing import TextWriter
from library.writable_folders import check_folders

logger = get_logger(__name__)


def tag_pictures(options: TaggingOptions) -> None:
    """Tag the pictures of a folder.

    Raises:
        UserError: What is wrong. Of broken pictures it is told at the end, when all others are done.
    """
    folder = options.pictures.train_data_dir
    assert folder is not None  # it is required
    shares = Shares.of_launch()
    pictures = find_pictures(folder, is_recursive=options.pictures.recursive)
    for fault in pictures.left_out:
        logger.warning("%s", fault)
    existing = _existing(options, pictures)
    check_folders(_files_to_write(options, shares.own(pictures.paths), pictures, existing))
    onnxruntime()
    files = _files_for_all(options, shares)
    labels = read_labels(files.table)
    rules = rules_of(options)
    tagging = Tagging(options, files, labels, TagChooser(labels, rules), shares)
    warn_of_limits(options, files.table, labels, tagging.chooser)
    if existing is None:
        _into_text_files(tagging, pictures)
    else:
        _into_metadata_file(tagging, pictures, existing, _identity(files, rules))
    tagging.tell()


def _existing(options: TaggingOptions, pictures: Pictures) -> Existing | None:
    """What the metadata file holds and will keep; None where none is written."""
    file = options.output.output_path
    if file is None:
        return None
    return Existing(file) if options.output.overwrite else read_existing(file, pictures)


def _files_to_write(
    options: TaggingOptions, own: Sequence[Path], pictures: Pictures, existing: Existing | None
) -> list[Path]:
    """What a run writes, if all goes well."""
    output = options.output
    if existing is not None:
        is_needed = output.append_tags or any(existing.text(name) is None for name in pictures.names)
        return [existing.file] if is_needed else []
    files = [text_file_of(picture, output.extension) for picture in own]
    return [file for file in files if output.append_tags or output.overwrite or not file.exists()]


def _files_for_all(options: TaggingOptions, shares: Shares) -> TaggerFiles:
    """The files of the tagger; one process downloads them, where that is needed."""
    place = TaggerPlace(options.tagger.repo_id, options.tagger.model_dir, "repo_id" in options.given)
    if shares.is_first:
        find_tagger(place, is_forced=options.tagger.force_download)
    shares.gathered(None)
    return find_tagger(place)


def _identity(files: TaggerFiles, rules: TagRules) -> str:
    """Another for every other model and every other set of rules."""
    marks = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return hashlib.sha256(json.dumps([marks, repr(rules)]).encode()).hexdigest()[:16]


def _into_text_files(tagging: Tagging, pictures: Pictures) -> None:
    settings, separator = tagging.options.output, tagging.options.choice.caption_separator
    outcome, shares = tagging.outcome, tagging.shares
    with TextWriter() as writer:
        output = TextOutput(
            writer,
            outcome,
            settings.extension,
            separator,
            is_appended=settings.append_tags,
            is_overwritten=settings.overwrite,
        )
        faults = output.faults(pictures.paths)
        own = [path for path in shares.own(pictures.paths) if path not in faults]
        kept = set(output.kept(own))
        outcome.faults += faults.values()
        outcome.kept += len(kept)
        numbers = shares.gathered(sum(map(output.is_empty, kept)))
        _tell_empty("text files", numbers, "delete them to have them filled")

        def put(batch: Sequence[Tagged]) -> None:
            for picture in batch:
                output.put(picture.path, picture.tags)

        tagging.tag([path for path in own if path not in kept], put, with_size=False)


def _tell_empty(what: str, numbers: Sequence[int], advice: str) -> None:
    if sum(numbers):
        logger.info("%s that stay empty: %d; %s", what, sum(numbers), advice)


def _into_metadata_file(tagging: Tagging, pictures: Pictures, existing: Existing, identity: str) -> None:
    shares = tagging.shares
    names = _names_to_tag(tagging, pictures, existing)
    with Journal(existing.file, identity, shares.rank) as journal:
        earlier = journal.read({name: path for path, name in names.items()})
        if earlier:
            number = counted(len(earlier), "picture")
            logger.info("%s: %s were tagged before this run was stopped", journal.path, number)
        for name, old in earlier.items():
            tagging.note(name, old.tags)
        found: dict[str, Found] = {}

        def put(batch: Sequence[Tagged]) -> None:
            new = [(names[path], path, Found(tags, size or (0, 0))) for path, size, tags in batch]
            journal.add(new)
            found.update((name, item) for name, _, item in new)

        tagging.tag([path for path, name in names.items() if name not in earlier], put, with_size=True)
    parts = shares.gathered((earlier, found))
    if shares.is_first:
        _write_metadata_file(tagging, pictures, existing.file, parts)
        journal.remove()


def _names_to_tag(tagging: Tagging, pictures: Pictures, existing: Existing) -> dict[Path, str]:
    """{picture: its name} of those of this process that get tags; the others are counted."""
    outcome, shares = tagging.outcome, tagging.shares
    names = dict(zip(pictures.paths, pictures.names, strict=True))
    odd = [path for path, name in names.items() if not is_whole(name)]
    outcome.faults += [Fault(path, "has a name that is no UTF-8 and cannot be written down; rename it") for path in odd]
    own = {path: names[path] for path in shares.own(pictures.paths) if is_whole(names[path])}
    if tagging.options.output.append_tags:
        return own
    texts = [text for name in own.values() if (text := existing.text(name)) is not None]
    outcome.kept += len(texts)
    advice = 'take "tags" out of them to have them filled'
    _tell_empty("entries", shares.gathered(sum(not text.strip() for text in texts)), advice)
    return {path: name for path, name in own.items() if existing.text(name) is None}


def _write_metadata_file(
    tagging: Tagging, pictures: Pictures, file: Path, parts: Sequence[tuple[Mapping[str, Found], Mapping[str, Found]]]
) -> None:
    """Write what all processes have found, (by earlier starts, by this one) of each, and count it.

    What the file holds is read again: a person, or another program, may have written it while the model worked.
    """
    settings, separator = tagging.options.output, tagging.options.choice.caption_separator
    everything = {name: item for part in parts for found in part for name, item in found.items()}
    if not everything:
        return
    now = Existing(file) if settings.overwrite else read_existing(file, pictures)
    if settings.overwrite and file.exists():
        logger.warning("%s: all that it held is replaced, captions and other entries too, as --overwrite says", file)
    late = set() if settings.append_tags else {name for name in everything if now.text(name) is not None}
    write_entries(file, merged(now, pictures, everything, separator, is_appended=settings.append_tags))
    if renamed := [f'"{old}" is now "{new}"' for old, new in renamed_entries(now, pictures).items()]:
        logger.info("names by which a training finds no picture: %d (%s)", len(renamed), first_names(renamed, 3))
    logger.info("%s: %s", file, counted(len(everything) - len(late), "picture"))
    tagging.outcome.written += sum(name not in late for _, found in parts for name in found)
    tagging.outcome.kept += sum(len(earlier) for earlier, _ in parts)
    tagging.outcome.kept += sum(name in late for _, found in parts for name in found)
