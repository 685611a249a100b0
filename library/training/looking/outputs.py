"""Files that looking at a dataset writes: never over what was not written by it before."""

from __future__ import annotations

import re
from pathlib import Path

from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.errors import OptionError, OutputError

PAGE = rb'<meta name="generator" content="preview of a dataset">'  # in page.html
FINDINGS = rb'\A\{\s*"version": \d+,\s*"source": '  # as checkup_json begins
_HEAD = 4096  # bytes


def refuse_output(file: Path, option: str, ours: bytes) -> None:
    """Refuse a place where a file cannot be written, or must not.

    Args:
        file: The place.
        option: That names it.
        ours: Pattern of the beginning of a file that may be written anew.

    Raises:
        OutputError: It is a folder, its folder is missing, or what is there cannot be read.
        OptionError: Somebody else's file is there, or a training would read the file.
    """
    if file.is_dir():
        raise OutputError(f"{option}: {file} is a folder. Name the file to write, for instance preview.html.")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{option}: the folder {file.absolute().parent} does not exist. Make it first.")
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in CAPTION_SUFFIXES:
        kind = "picture" if suffix in IMAGE_SUFFIXES else "caption"
        raise OptionError(f"{option}: {file} ends like a {kind} and would be taken for one. Give it another ending.")
    if file.exists() and (not file.is_file() or not _is_ours(file, option, ours)):
        raise OptionError(f"{option}: {file} is there already and was not written by this tool. Name another file.")


def _is_ours(file: Path, option: str, ours: bytes) -> bool:
    """Whether a file may be replaced: it is empty, or begins as it would be written now."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        raise OutputError(f"{option}: {file} cannot be read ({error.strerror or error}). Name another file.") from None
    return not head or re.search(ours, head) is not None
