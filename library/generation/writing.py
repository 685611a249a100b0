"""Pictures as files, with what they were made from inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from library.generation.png_text import generation_text, png_chunks
from library.generation.record import GenerationRecord
from library.tensorfile import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image


def write_picture(path: Path, picture: Image, record: GenerationRecord) -> None:
    """Write a PNG, as a whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    chunks = png_chunks(generation_text(record))
    write_atomically(path, lambda place: picture.save(place, format="PNG", pnginfo=chunks))
