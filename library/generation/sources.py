"""Pictures that are drawn over, and their masks."""

from __future__ import annotations

from dataclasses import dataclass
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
        return cls(_listed(image_path, "--image_path"), _listed(mask_path, "--mask_path"))

    def image(self, prompt: int) -> Path | None:
        """That of a prompt, by its number from 0."""
        return self.images[prompt % len(self.images)] if self.images else None

    def mask(self, prompt: int) -> Path | None:
        """Likewise."""
        return self.masks[prompt % len(self.masks)] if self.masks else None


def picture_size(path: Path) -> Size:
    """Size of a picture, from its header, as it is looked at.

    Raises:
        DatasetError: It cannot be read.
    """
    with _opened(path, "--image_path") as picture:
        return Size(*picture.size)


def load_source(path: Path, size: Size) -> Image:
    """A picture at a size, in colours. Another shape is stretched, and the log says so.

    Raises:
        DatasetError: It cannot be read.
    """
    from PIL import Image as pillow

    with _opened(path, "--image_path") as picture:
        if picture.size != size:
            logger.info("%s: %s is resized to %s.", path, Size(*picture.size), size)
        return picture.convert("RGB").resize(size, pillow.Resampling.LANCZOS)


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
    with _opened(path, "--mask_path") as picture:
        if picture.size != size:
            logger.warning("%s: the mask is %s and is resized to %s.", path, Size(*picture.size), size)
        small = picture.convert("L").resize(size, pillow.Resampling.BILINEAR).resize(cells, pillow.Resampling.BOX)
    return torch.from_numpy(numpy.array(small)).float()[None, None] / 255


def _listed(path: Path | None, option: str) -> tuple[Path, ...]:
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


def _opened(path: Path, option: str) -> Image:
    """The picture, decoded and turned as it is looked at."""
    from PIL import Image as pillow
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with pillow.open(path) as stored:
            return ImageOps.exif_transpose(stored)
    except FileNotFoundError:
        raise DatasetError(f"{option}: {path} does not exist. Check the path.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DatasetError(f"{option}: {path} is no picture that can be read ({error}). Give another.") from None
