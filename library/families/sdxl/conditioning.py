"""What SDXL is told about a picture beside its text: original size, where it was cut out, and its size.

Six numbers for each sample: original height and width, top and left of the crop, height and width of the training
picture; all in pixels. The crop is counted in the resized picture, which is how SDXL was trained.

Source: Podell et al. 2023, arXiv:2307.01952, section 2.2 and algorithm 1; the published inference code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from library.families.unet.fitted_box import fitted_box

if TYPE_CHECKING:
    from torch import Tensor

    from library.records import View

_CHANNELS = 256  # of one number
_LONGEST_PERIOD = 10_000


def true_sizes(views: Sequence[View]) -> Tensor:
    """What each sample really shows. Of a mirrored picture, left is counted in the mirrored one.

    Returns:
        Whole numbers. Shape [B, 6], float32, on the CPU.
    """
    return torch.tensor([_row(view, view.crop.top, _left(view)) for view in views], dtype=torch.float32)


def compat_sizes(views: Sequence[View]) -> Tensor:
    """What sd-scripts says of the same samples: as if the picture had been fitted into the bucket and not cut.

    Returns:
        Whole numbers. Shape [B, 6], float32, on the CPU.
    """
    rows = []
    for view in views:
        bucket = view.crop.bucket
        box = fitted_box(view.original, bucket)
        rows.append(_row(view, int(box.top), int(bucket.width - box.right if view.is_flipped else box.left)))
    return torch.tensor(rows, dtype=torch.float32)


def size_embedding(sizes: Tensor) -> Tensor:
    """The numbers as the U-Net takes them in. diffusers computes the same from `time_ids`.

    Args:
        sizes: Shape [B, 6].

    Returns:
        Of each number 128 cosines, then 128 sines. Shape [B, 1536].
    """
    steps = torch.arange(_CHANNELS // 2, dtype=torch.float32, device=sizes.device) / (_CHANNELS // 2)
    angles = sizes[..., None] * torch.exp(-math.log(_LONGEST_PERIOD) * steps)  # [B, 6, 128]
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)


def _left(view: View) -> int:
    crop = view.crop
    return crop.resized.width - crop.left - crop.bucket.width if view.is_flipped else crop.left


def _row(view: View, top: int, left: int) -> list[int]:
    bucket = view.crop.bucket
    return [view.original.height, view.original.width, top, left, bucket.height, bucket.width]
