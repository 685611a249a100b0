"""The caption or tag files beside the pictures of a folder, read as a training reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from library.data.config.specs import SubsetSpec
from library.data.files.caption_files import read_captions
from library.data.files.caption_hints import NearFiles, captions_elsewhere
from library.data.findings import Fault
from library.data.plan.captions import CaptionRules
from library.data.problems import dataset_error, first_names
from library.errors import DatasetError
from library.log import get_logger
from library.preparing.pictures import Pictures, text_file_of

logger = get_logger(__name__)


@dataclass(frozen=True)
class PictureTexts:
    """What the files say.

    Attributes:
        texts: {picture: its text}, "" for a file without text: all lines that are not blank, joined by newlines.
            Pictures without a file are not in it.
        faults: Of files that cannot be used.
    """

    texts: Mapping[Path, str]
    faults: tuple[Fault, ...]


def read_texts(pictures: Pictures, extension: str) -> PictureTexts:
    """Read the text file of every picture; a warning counts the pictures without one.

    Args:
        pictures: Of one folder.
        extension: With its dot.

    Raises:
        DatasetError: No picture has such a file, or the drive keeps one from being read.
    """
    rules = CaptionRules(enable_wildcard=True)  # keeps all lines; a training without wildcards uses the first
    subset = SubsetSpec(
        image_dir=pictures.root,
        caption_extension=extension,
        captions=rules,
        missing_caption="allow",
        empty_caption="allow",
    )
    with_file = {path for path in pictures.paths if _has_file(path, extension, pictures)}
    if not with_file:
        raise DatasetError(_nothing_to_read(subset, pictures))
    reading = read_captions(subset, pictures.paths, pictures.other_files)
    if reading.findings.problems:
        raise dataset_error("TRAIN_DATA_DIR", reading.findings.problems)
    for remark in reading.findings.remarks:
        logger.info("%s.", remark)
    texts = {path: text for path, text in reading.captions.items() if path in with_file}
    faulty = {fault.picture for fault in reading.findings.faults}
    _tell_missing([path for path in pictures.paths if path not in with_file and path not in faulty], subset, pictures)
    _tell_empty([path for path, text in texts.items() if not text], extension)
    return PictureTexts(texts, reading.findings.faults)


def _has_file(picture: Path, extension: str, pictures: Pictures) -> bool:
    return text_file_of(picture, extension).name in pictures.other_files.get(picture.parent, ())


def _nothing_to_read(subset: SubsetSpec, pictures: Pictures) -> str:
    elsewhere = captions_elsewhere(subset, pictures.paths, pictures.other_files)
    if elsewhere is not None:
        hint, extension = elsewhere
        return f"TRAIN_DATA_DIR {hint}. Give --caption_extension {extension}."
    return (
        f"TRAIN_DATA_DIR {pictures.root}: none of its pictures has a {subset.caption_extension} file beside it. Write "
        "them first, or give --caption_extension."
    )


def _tell_missing(missing: list[Path], subset: SubsetSpec, pictures: Pictures) -> None:
    if not missing:
        return
    extension = subset.caption_extension
    taken = {os.fspath(text_file_of(path, extension)) for path in pictures.paths}
    near_files = NearFiles(extension, taken, pictures.other_files)
    near = [name for path in missing for name in near_files.of(path)]
    hint = f" There are files of another ending or letter case that may be theirs: {first_names(near)}." if near else ""
    names = first_names([path.name for path in missing])
    what = "pictures without a %s file, of which only the size is noted: %d (%s).%s"
    logger.warning(what, extension, len(missing), names, hint)


def _tell_empty(empty: list[Path], extension: str) -> None:
    if empty:
        names = first_names([text_file_of(path, extension).name for path in empty])
        logger.warning("files without text, which is noted as an empty one: %d (%s).", len(empty), names)
