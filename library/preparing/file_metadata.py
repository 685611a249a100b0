"""What a weights file says about itself, as JSON or in a few lines; and copies of it that tell nothing personal."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from library.checkpoint.metadata_copy import copy_with_metadata
from library.data.files.strict_json import parse_json
from library.errors import CheckpointError, OptionError
from library.log import get_logger
from library.options.option import nearest_hint
from library.pickled import ZIP_START
from library.preparing.file_summary import summary_lines
from library.preparing.metadata_scrub import TEXTS, Scrubbed, scrub
from library.preparing.options.file_metadata import FileMetadataOptions
from library.tensorfile import PNG_START, TensorHeader, read_header

logger = get_logger(__name__)


def shown_metadata(options: FileMetadataOptions) -> str:
    """What to show of a file, after a scrubbed copy has been written where that is asked for.

    Raises:
        CheckpointError: The file cannot be read, or is of a kind without metadata.
        OptionError: The copy would take the place of a file, or names are not in this one.
        OutputError: The copy cannot be written.
    """
    assert options.model is not None
    if options.output is not None and options.output.exists() and not options.overwrite:
        raise OptionError(f"--output {options.output} is there already. Give another name, or --overwrite.")
    header = header_of(options.model)
    if not header.metadata:
        logger.info("%s has no metadata.", options.model)
    if options.output is not None:
        header = _scrubbed_copy(header, options.output, options.keep or (), options.remove or ())
    if options.summary:
        return "\n".join(summary_lines(header))
    return json_text(header.metadata, is_raw=options.raw)


def header_of(path: Path) -> TensorHeader:
    """The header of a .safetensors file.

    Raises:
        CheckpointError: It is missing, damaged, or of another kind; pickles have no metadata.
    """
    try:
        return read_header(path, "--model")
    except CheckpointError:
        start = _start(path)
        if start == PNG_START:
            raise CheckpointError(
                f"--model: {path} is a PNG picture. `gen_img.py --from_png` reads what such a file says of itself."
            ) from None
        if start == ZIP_START or start[:1] == b"\x80":
            raise CheckpointError(
                f"--model: {path} is a pickle (.ckpt, .pt), and such files hold no metadata. Give a .safetensors file."
            ) from None
        raise


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError:
        return b""  # why it cannot be read is told already


def json_text(metadata: Mapping[str, str], *, is_raw: bool = False) -> str:
    """Metadata as JSON, sorted by name.

    Args:
        metadata: Of a file.
        is_raw: Leave values that are JSON objects or lists as text.
    """
    values = metadata if is_raw else {name: _decoded(value) for name, value in metadata.items()}
    return json.dumps(values, indent=4, sort_keys=True, ensure_ascii=False)


def _decoded(value: str) -> Any:
    """The object or list that a text is; the text itself where it is none, or where something would be lost."""
    if value[:1] not in ("{", "["):
        return value
    repeated: list[str] = []
    try:
        found = parse_json(value, repeated)
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        return value
    return value if repeated else found


def _scrubbed_copy(header: TensorHeader, target: Path, keep: Collection[str], remove: Collection[str]) -> TensorHeader:
    """Write the copy, tell what is gone, and give its header."""
    for flag, names in (("--keep", keep), ("--remove", remove)):
        for name in names:
            if name not in header.metadata:
                hint = nearest_hint(name, sorted(header.metadata))
                raise OptionError(f"{flag}: {header.path} has no {name}.{hint}")
    scrubbed = scrub(header.metadata, keep=keep, remove=remove)
    copy_with_metadata(header, target, scrubbed.metadata)
    _tell(scrubbed, target)
    return read_header(target, "--output")


def _tell(scrubbed: Scrubbed, target: Path) -> None:
    logger.info("removed: %s", ", ".join(scrubbed.removed) or "nothing")
    for name, gone in scrubbed.shortened.items():
        logger.info("removed out of %s: %s", name, ", ".join(gone))
    if texts := [name for name in TEXTS if name in scrubbed.metadata]:
        logger.info("left, since they are written for readers (--remove takes them out): %s", ", ".join(texts))
    logger.info("%s: written, with the same weights", target)
