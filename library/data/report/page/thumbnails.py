"""Small pictures for the preview page: what is trained, inside what is cut away, and where a mask says to learn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from library.data.pixels.images import load_image, load_resized
from library.data.pixels.pictures import prepare_picture
from library.errors import DatasetError
from library.records import CropPlan, ImageRecord, Size

if TYPE_CHECKING:
    from torch import Tensor

    from library.data.config.specs import DatasetSpec

SIDE = 192  # of the trained part, in pixels
_MOST_AROUND = 2.0  # times SIDE: how far the cut-away part is shown
_QUALITY = 78
_MASK_COLOUR = (214, 40, 90)
_MASK_STRENGTH = 0.62  # where nothing is learned


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Attributes:
        jpeg: The picture with what is cut away.
        size: Of it, in pixels.
        window: The trained part in it: left, top, width, height, each as a share of the size.
        mask: A PNG to lay over the trained part, or None; it covers what is not learned.
    """

    jpeg: bytes
    size: Size
    window: tuple[float, float, float, float]
    mask: bytes | None = None


def make_thumbnail(record: ImageRecord, crop: CropPlan, spec: DatasetSpec, *, cells: int) -> Thumbnail:
    """The picture as it is trained, shrunk, with what is cut away around it.

    Args:
        record: The picture.
        crop: How it is cut.
        spec: Of its dataset.
        cells: Pixels of a latent's side, for masks.

    Raises:
        DatasetError: The picture or its mask cannot be read.
    """
    prepared = prepare_picture(record, crop, spec, cells=cells)
    scale = SIDE / max(crop.bucket)
    inner = _scaled(crop.bucket, scale)
    trained = Image.fromarray(_pixels(prepared.image)).resize(inner, Image.Resampling.BOX)
    mask = None if prepared.mask is None else _mask_png(prepared.mask)
    if crop.resized == crop.bucket:
        return Thumbnail(_jpeg(trained), inner, (0.0, 0.0, 1.0, 1.0), mask)
    whole, left, top = _surroundings(record, crop, spec, scale)
    whole.paste(trained, (left, top))
    width, height = whole.size
    window = (left / width, top / height, inner.width / width, inner.height / height)
    return Thumbnail(_jpeg(whole), Size(width, height), window, mask)


def make_plain_thumbnail(path: Path) -> Thumbnail | None:
    """A picture that is not used, whole; None where it cannot be decoded."""
    try:
        image = load_image(path, least=Size(SIDE, SIDE))
    except DatasetError:
        return None
    image = image.copy()
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return Thumbnail(_jpeg(image), Size(*image.size), (0.0, 0.0, 1.0, 1.0))


def _surroundings(record: ImageRecord, crop: CropPlan, spec: DatasetSpec, scale: float) -> tuple[Image.Image, int, int]:
    """The shrunk picture around the crop, as far as it is shown, and where the crop lies in it."""
    size = _scaled(crop.resized, scale)
    background = spec.subsets[record.subset].background
    whole = Image.fromarray(load_resized(record.path, record.size, size, None, background=background).pixels)
    inner = _scaled(crop.bucket, scale)
    left = min(round(crop.left * scale), size.width - inner.width)
    top = min(round(crop.top * scale), size.height - inner.height)
    limit = round(SIDE * _MOST_AROUND)
    far_left, far_top = max(0, left - (limit - inner.width) // 2), max(0, top - (limit - inner.height) // 2)
    far_right, far_bottom = min(size.width, far_left + limit), min(size.height, far_top + limit)
    return whole.crop((far_left, far_top, far_right, far_bottom)), left - far_left, top - far_top


def _scaled(size: Size, scale: float) -> Size:
    return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))


def _pixels(image: Tensor) -> np.ndarray:
    """From -1..1 [3, H, W] to uint8 [H, W, 3]."""
    scaled = ((image + 1) * 127.5).round().clamp(0, 255).byte()
    return scaled.permute(1, 2, 0).contiguous().numpy()


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _mask_png(mask: Tensor) -> bytes:
    """[1, h, w] of 0..1 as a coloured veil that is thickest where nothing is learned."""
    hidden = (1 - mask[0].float()).clamp(0, 1).numpy()
    veil = np.empty((*hidden.shape, 4), np.uint8)
    veil[..., :3] = _MASK_COLOUR
    veil[..., 3] = np.round(hidden * _MASK_STRENGTH * 255)
    file = io.BytesIO()
    Image.fromarray(veil).save(file, "PNG", optimize=True)
    return file.getvalue()
