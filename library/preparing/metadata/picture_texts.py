"""The caption or tag files beside the pictures of a folder, read as a training reads them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
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


def read_texts(
    pictures: Pictures, extension: str, encoding: str | None = None, *, passed: Collection[Path] = ()
) -> PictureTexts:
    """Read the text file of every picture; a warning counts the pictures without one.

    Args:
        pictures: Of one folder.
        extension: With its dot.
        encoding: Of files that are neither UTF-8 nor marked UTF-16.
        passed: Pictures that are passed over: whether they have one does not matter.

    Raises:
        DatasetError: The encoding is not known, no picture has such a file, or the drive keeps one from being read.
    """
    rules = CaptionRules(enable_wildcard=True)  # keeps all lines; a training without wildcards uses the first
    subset = SubsetSpec(
        image_dir=pictures.root,
        caption_extension=extension,
        caption_encoding=encoding,
        captions=rules,
        missing_caption="allow",
        empty_caption="allow",
    )
    respelled = _respelled(
        [path for path in pictures.paths if not _has_file(path, extension, pictures)], extension, pictures
    )
    with_file = {path for path in pictures.paths if path in respelled or _has_file(path, extension, pictures)}
    if not with_file:
        raise DatasetError(_nothing_to_read(subset, pictures))
    reading = read_captions(subset, [respelled.get(path, path) for path in pictures.paths], pictures.other_files)
    if reading.findings.problems:
        raise dataset_error("TRAIN_DATA_DIR", [_as_option(problem) for problem in reading.findings.problems])
    for remark in reading.findings.remarks:
        logger.info("%s.", remark)
    own = {other: path for path, other in respelled.items()}
    texts = {own.get(path, path): text for path, text in reading.captions.items()}
    faults = tuple(
        fault._replace(problem=_as_option(fault.problem), image=own.get(fault.picture, fault.image))
        for fault in reading.findings.faults
    )
    missing = set(pictures.paths) - with_file - {fault.picture for fault in faults} - set(passed)
    _tell_missing([path for path in pictures.paths if path in missing], subset, pictures)
    _tell_respelled(list(respelled.values()), extension)
    return PictureTexts({path: text for path, text in texts.items() if path in with_file}, faults)


def _respelled(without: Sequence[Path], extension: str, pictures: Pictures) -> dict[Path, Path]:
    """{picture: its path in the spelling of its text file} where names only look alike: "ü" is one sign or two.

    Args:
        without: Pictures for which there is no file of just their name.
        extension: Of text files.
        pictures: All of the folder.
    """
    taken = {text_file_of(path, extension) for path in pictures.paths}
    looks: dict[Path, list[str]] = defaultdict(list)
    for folder, names in pictures.other_files.items():
        for name in names:
            if not name.isascii() and name.endswith(extension) and folder / name not in taken:
                looks[folder / unicodedata.normalize("NFC", name)].append(name)
    found = {}
    for path in without:
        alike = looks.get(path.with_name(unicodedata.normalize("NFC", text_file_of(path, extension).name)), [])
        if len(alike) == 1:
            found[path] = path.with_name(alike[0].removesuffix(extension) + os.path.splitext(path.name)[1])
    number = Counter(found.values())  # of one look may be several pictures; then it is the text of none
    return {path: other for path, other in found.items() if number[other] == 1}


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


def _as_option(problem: str) -> str:
    """A sentence about a key of dataset files, about the option of the tools."""
    return re.sub(r'caption_encoding (= )?"([^"]*)"', r"--caption_encoding \2", problem)


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


def _tell_respelled(respelled: list[Path], extension: str) -> None:
    if respelled:
        names = first_names([text_file_of(path, extension).name for path in respelled])
        what = "files that are named like their pictures but for é as one sign or two, read all the same: %d (%s)."
        logger.info(what, len(respelled), names)
