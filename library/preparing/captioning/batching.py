"""From pictures to the inputs of a captioner: at a size that it can take, and in batches that it can take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.findings import Fault
from library.data.pixels.images import load_image, resize_pixels
from library.errors import DatasetError
from library.memory_use import is_out_of_memory
from library.preparing.captioning.prompting import Encode, Inputs, is_padded
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST_SHAPE = 50  # times as long as wide: processors that bring the short side to a size make it take gigabytes
# What processors raise where they cannot take a picture, memory included.
_REFUSALS = (ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError)


def picture_for(path: Path, *, max_pixels: int | None, least: Size | None = None) -> Image:
    """Decode a picture for a captioner.

    Args:
        path: The file.
        max_pixels: A larger one is made smaller, in its shape; None leaves it.
        least: The size that the captioner brings it to, so that it may be decoded at a reduced size.

    Raises:
        DatasetError: It cannot be decoded, or is a strip that no captioner can see.
    """
    from PIL import Image

    if least is None and max_pixels is not None:
        least = Size(math.isqrt(max_pixels), math.isqrt(max_pixels))
    image = load_image(path, least=least)
    width, height = image.size
    if max(image.size) > _LONGEST_SHAPE * min(image.size):
        raise DatasetError(
            f"{path} is more than {_LONGEST_SHAPE} times as long as wide, which captioners cannot see; crop or remove "
            "it."
        )
    if max_pixels is None or width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    size = Size(max(int(width * scale), 1), max(int(height * scale), 1))
    return Image.fromarray(resize_pixels(image, size, None))


def encode_batch(
    batch: Sequence[tuple[Path, Image]], encode: Encode, faults: list[Fault], *, may_pad: bool = True
) -> list[tuple[list[Path], Inputs]]:
    """The inputs of a batch, without pictures that the model's processor refuses.

    Args:
        batch: Pictures, decoded.
        encode: Makes inputs.
        faults: Gets what is wrong with those that are refused.
        may_pad: Prompts of different lengths may be together.

    Returns:
        One batch; each picture alone where they may not be together; nothing where none is left.
    """
    try:
        inputs = encode([image for _, image in batch])
    except _REFUSALS as error:
        if len(batch) == 1:
            faults.append(Fault(batch[0][0], f"cannot be given to this model ({_reason(error)}); crop or remove it"))
            return []
        parts = [part for item in batch for part in encode_batch([item], encode, faults)]
        if len(parts) == len(batch):  # together they are too much, or have shapes that do not go together
            return parts
        good = [item for item in batch if item[0] in {paths[0] for paths, _ in parts}]
        return encode_batch(good, encode, faults, may_pad=may_pad) if good else []
    if len(batch) > 1 and not may_pad and is_padded(inputs):
        return [alone for item in batch for alone in encode_batch([item], encode, faults)]
    return [([path for path, _ in batch], inputs)]


def _reason(error: Exception) -> str:
    return "not enough memory" if is_out_of_memory(error) else " ".join(str(error).split()) or type(error).__name__
