"""Regions of a picture with prompts, and networks, of their own.

A map says in colours which region each pixel belongs to: red is the first, then green, yellow, blue, magenta, cyan and
white. What has another colour, as black, belongs to all of them alike. In every step the denoiser predicts once for
each region, told its part of the prompt and with its network alone, and the predictions are put together by the map.

Source: Bar-Tal et al. 2023, arXiv:2302.08113, for the blending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from library.errors import OptionError
from library.families.base import Conditioning
from library.generation.guides import OPTION
from library.generation.sources import opened_picture
from library.records import Size

if TYPE_CHECKING:
    from library.generation.painting import Predict
    from library.generation.record import NetworkUse

_NEAREST = 128  # from here on, red, green or blue counts


@dataclass(frozen=True)
class Region:
    """One region while a batch is drawn.

    Attributes:
        networks: At the strengths that they have in it.
        conditioning: Of all rows that the denoiser is called with.
    """

    networks: tuple[NetworkUse, ...]
    conditioning: Conditioning


def region_masks(path: Path, size: Size, number: int, cell: int) -> Tensor:
    """Shares of each region in what a latent stands for; they sum to 1. Shape [number, h, w], float32.

    Args:
        path: The map; it is resized to the picture.
        size: Of the picture, in pixels.
        number: Of regions, up to 7.
        cell: Side of what a latent stands for, in pixels.

    Raises:
        DatasetError: It cannot be read.
        OptionError: It lacks the colour of a region.
    """
    from PIL import Image as pillow

    with opened_picture(path, OPTION) as picture:
        pixels = numpy.asarray(picture.convert("RGB").resize(size, pillow.Resampling.NEAREST))
    codes = ((pixels >= _NEAREST) * numpy.array([1, 2, 4])).sum(axis=-1)  # [H, W]
    own = torch.stack([torch.from_numpy(codes == number + 1) for number in range(number)]).float()
    empty = next((place for place, mask in enumerate(own) if not mask.any()), None)
    if empty is not None:
        raise OptionError(
            f"{OPTION}: {path} has no pixel of the colour of region {empty + 1}. Paint it, or ask for less."
        )
    own += (own.sum(0) == 0).float() / number
    return F.avg_pool2d(own[None], cell)[0]


def networks_of_region(uses: Sequence[NetworkUse], region: int, number: int) -> tuple[NetworkUse, ...]:
    """The networks at the strengths of one region: each is for the region of its number; a single one is for all.

    Raises:
        OptionError: There are several, and not as many as regions.
    """
    from dataclasses import replace

    if len(uses) <= 1:
        return tuple(uses)
    if len(uses) != number:
        raise OptionError(
            f"--network_weights has {len(uses)} files for {number} regions. Give one for each, or one for all."
        )
    return tuple(replace(use, multiplier=use.multiplier if place == region else 0.0) for place, use in enumerate(uses))


def by_regions(
    regions: Sequence[Region], masks: Tensor, set_networks: Callable[[Sequence[NetworkUse]], None]
) -> Callable[[Predict], Predict]:
    """How the denoiser is called, so that each region has its own prediction.

    Args:
        regions: All of them.
        masks: Shape [number, h, w].
        set_networks: Lets networks act at strengths.
    """

    def wrap(usual: Predict) -> Predict:
        def predict(latents: Tensor, timesteps: Tensor, _: Conditioning) -> Tensor:
            shares = masks.to(latents.device)
            if shares.shape[-2:] != latents.shape[-2:]:  # of latents that grow
                shares = F.interpolate(shares[None], latents.shape[-2:], mode="area")[0]
            total = torch.zeros((), device=latents.device)
            for region, share in zip(regions, shares, strict=True):
                set_networks(region.networks)
                total = total + usual(latents, timesteps, region.conditioning).float() * share
            return total

        return predict

    return wrap
