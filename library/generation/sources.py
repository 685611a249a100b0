"""Pictures that are drawn over, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import DatasetError, OptionError
from library.log import get_logger
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

logger = get_logger(__name__)

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")
_ORIENTATION = 0x0112  # of EXIF
_TURNED = (5, 6, 7, 8)  # orientations by a quarter


@dataclass(frozen=True)
class SourcePictures:
    """What prompts are drawn over: the first belongs to the first prompt, and so on, over and over.

    Attributes:
        images: Paths; empty where drawing begins at noise.
        masks: Paths; empty where all of a picture is drawn over.
    """

    images: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()

    @classmethod
    def of(cls, image_path: Path | None, mask_path: Path | None) -> SourcePictures:
        """From the options.

        Raises:
            OptionError: A path does not exist, or a folder has no pictures.
        """
        return cls(listed_pictures(image_path, "--image_path"), listed_pictures(mask_path, "--mask_path"))

    def of_prompt(self, number: int) -> tuple[Path | None, Path | None]:
        """Picture and mask of a prompt, by its number from 0.

        Raises:
            DatasetError: One of them cannot be read.
        """
        image = self.images[number % len(self.images)] if self.images else None
        mask = self.masks[number % len(self.masks)] if self.masks else None
        for path, option in ((image, "--image_path"), (mask, "--mask_path")):
            if path is not None:
                picture_size(path, option)
        return image, mask


@lru_cache(maxsize=4096)
def picture_size(path: Path, option: str = "--image_path") -> Size:
    """Size of a picture, from its header, as it is looked at.

    Raises:
        DatasetError: It cannot be read.
    """
    from PIL import Image as pillow

    with _naming(path, option), pillow.open(path) as stored:
        is_turned = stored.getexif().get(_ORIENTATION, 1) in _TURNED
        return Size(*(stored.size[::-1] if is_turned else stored.size))


def load_source(path: Path, size: Size) -> Image:
    """A picture at a size, in colours; white where it is transparent. Another shape is stretched, and the log says so.

    Raises:
        DatasetError: It cannot be read.
    """
    from PIL import Image as pillow

    from library.data.pixels.colours import to_rgb

    with opened_picture(path, "--image_path") as picture:
        if picture.size != size:
            logger.info("%s: %s is resized to %s.", path, Size(*picture.size), size)
        return to_rgb(picture).resize(size, pillow.Resampling.LANCZOS)


def load_cells_mask(path: Path, size: Size, cell: int) -> Tensor:
    """A mask at the size of latents, as the mean of what lies in each: 1 is drawn. Shape [1, 1, h, w].

    Args:
        path: A picture that is white where something is drawn. Its transparency does not count.
        size: Of the picture that is drawn, in pixels.
        cell: Side of what a latent stands for, in pixels.

    Raises:
        DatasetError: It cannot be read.
    """
    import numpy
    import torch
    from PIL import Image as pillow

    cells = (size.width // cell, size.height // cell)
    with opened_picture(path, "--mask_path") as picture:
        if picture.size != size:
            logger.warning("%s: the mask is %s and is resized to %s.", path, Size(*picture.size), size)
        small = picture.convert("L").resize(size, pillow.Resampling.BILINEAR).resize(cells, pillow.Resampling.BOX)
    return torch.from_numpy(numpy.array(small)).float()[None, None] / 255


def listed_pictures(path: Path | None, option: str) -> tuple[Path, ...]:
    """A picture, or those of a folder in the order of their names; none where none is given.

    Raises:
        OptionError: The path does not exist, or the folder has no pictures.
    """
    if path is None:
        return ()
    if not path.exists():
        raise OptionError(f"{option}: {path} does not exist. Check the path.")
    if path.is_file():
        return (path,)
    found = tuple(sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES))
    if not found:
        raise OptionError(f"{option}: {path} has no pictures ({', '.join(_PICTURES)}). Check the path.")
    return found


def opened_picture(path: Path, option: str) -> Image:
    """The picture with 8 bits a channel, decoded and turned as it is looked at."""
    from PIL import Image as pillow
    from PIL import ImageOps

    from library.data.pixels.colours import in_8_bits

    with _naming(path, option), pillow.open(path) as stored:
        turned = ImageOps.exif_transpose(stored)
        turned.format = stored.format
        return in_8_bits(turned)


@contextmanager
def _naming(path: Path, option: str) -> Iterator[None]:
    """Say which picture cannot be read."""
    from PIL import Image as pillow

    try:
        yield
    except FileNotFoundError:
        raise DatasetError(f"{option}: {path} does not exist. Check the path.") from None
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DatasetError(f"{option}: {path} is no picture that can be read ({error}). Give another.") from None
