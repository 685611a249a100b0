"""From a record and its crop to what is trained: pixels, and a mask or more that went exactly the same way."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from library.data.pixels.augment import change_colours
from library.data.pixels.images import cut_out, load_beside, load_mask, load_resized, pixels_to_tensor
from library.data.plan.crops import drawn_crop
from library.records import CropPlan, ImageRecord

if TYPE_CHECKING:
    from torch import Tensor

    from library.data.config.specs import DatasetSpec

_OPAQUE = 255


class Prepared(NamedTuple):
    """A training picture.

    Attributes:
        image: In -1..1. Shape [3, H, W], float32.
        mask: Where to learn, in 0..1, rounded to float16. Shape [1, h, w], float32; None where its subset has no masks.
        crop: The planned crop, or the one that was drawn.
    """

    image: Tensor
    mask: Tensor | None
    crop: CropPlan


def prepare_picture(
    record: ImageRecord,
    crop: CropPlan,
    spec: DatasetSpec,
    *,
    is_flipped: bool = False,
    draw: random.Random | None = None,
    cells: int,
) -> Prepared:
    """Decode, resize, cut out, recolour and mirror a picture, and its mask likewise.

    Args:
        record: The picture.
        crop: Its planned crop.
        spec: Of its dataset.
        is_flipped: Mirror left and right, after cutting.
        draw: Generator of this sample in this epoch, for crops and colours; None leaves out all that is random.
        cells: Pixels of a latent's side. A mask's value is the mean over them.

    Raises:
        DatasetError: The picture or its mask is gone, broken, or has another size than when it was scanned.
    """
    subset = spec.subsets[record.subset]
    interpolation = spec.interpolation_of(record.subset)
    if draw is not None:
        crop = drawn_crop(record, crop, spec, draw)
    pixels, mask = load_resized(
        record.path,
        record.size,
        crop.resized,
        interpolation,
        background=subset.background,
        with_alpha=subset.alpha_mask,
    )
    if record.mask is not None:
        mask = load_mask(record.mask, record.size, crop.resized, interpolation)
    elif subset.alpha_mask and mask is None:
        mask = np.full(pixels.shape[:2], _OPAQUE, np.uint8)
    pixels = cut_out(pixels, crop)
    if draw is not None and subset.color_aug:
        pixels = change_colours(pixels, draw)
    image = pixels_to_tensor(pixels[:, ::-1] if is_flipped else pixels)
    return Prepared(image, None if mask is None else _mask_tensor(cut_out(mask, crop), cells, is_flipped), crop)


def prepare_conditioning(record: ImageRecord, crop: CropPlan, spec: DatasetSpec, *, is_flipped: bool) -> Tensor:
    """What a network is told of a picture, resized, cut out and mirrored as the picture is. Its colours stay.

    Args:
        record: The picture, with a conditioning one.
        crop: The crop that the picture had: the planned one, or what was drawn.
        spec: Of its dataset.
        is_flipped: As the picture is.

    Returns:
        In -1..1. Shape [3, H, W], float32.

    Raises:
        DatasetError: It is gone or broken, or has another shape than the picture.
    """
    assert record.conditioning is not None
    interpolation, background = spec.interpolation_of(record.subset), spec.subsets[record.subset].background
    pixels = load_beside(record.conditioning, record.size, crop.resized, interpolation, background=background)
    pixels = cut_out(pixels, crop)
    return pixels_to_tensor(pixels[:, ::-1] if is_flipped else pixels)


def _mask_tensor(mask: np.ndarray, cells: int, is_flipped: bool) -> Tensor:
    """From [H, W] uint8 to the means of cells x cells pixels, [1, H / cells, W / cells] in 0..1."""
    import torch

    height, width = mask.shape[0] // cells, mask.shape[1] // cells
    means = mask.reshape(height, cells, width, cells).mean((1, 3), dtype=np.float64) / _OPAQUE
    means = means[:, ::-1] if is_flipped else means
    return torch.from_numpy(np.ascontiguousarray(means))[None].half().float()
