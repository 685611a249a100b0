"""The noise that drawing begins at: plain, or for some pictures with coarse structure or a shift of each channel.

What is drawn for a picture is keyed by its seed. Source: see `library/diffusion/noise.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from library.diffusion.noise import coarse_noise, offset_noise, with_unit_deviation
from library.rng import normal_per_sample, python_stream, stream_seed

_LEVELS = 10  # at most; a level with a side of 1 is the last


def start_noise(noise: Tensor, seeds: Sequence[int], extras: Mapping[str, Any]) -> Tensor:
    """The noise of a batch with what extras add. Shape [B, C, h, w]."""
    rows = [_changed(row[None], seed, extras) for row, seed in zip(noise, seeds, strict=True)]
    return torch.cat(rows)


def _changed(noise: Tensor, seed: int, extras: Mapping[str, Any]) -> Tensor:
    """Of one picture. Shape [1, C, h, w]."""
    discount = _drawn(seed, "pyramid", extras.get("pyramid_noise_prob"), extras.get("pyramid_noise_discount_range"))
    if discount is not None:
        coarse = coarse_noise(stream_seed(seed, "pyramid"), noise.shape[1:], iterations=_LEVELS, discount=discount)
        noise = with_unit_deviation(noise + coarse.to(noise.device))
    strength = _drawn(seed, "offset", extras.get("noise_offset_prob"), extras.get("noise_offset_range"))
    if strength is not None:
        shift = normal_per_sample([stream_seed(seed, "offset")], (noise.shape[1], 1, 1)).to(noise.device)
        noise = offset_noise(noise, noise, shift, strength)
    return noise


def _drawn(seed: int, name: str, chance: float | None, span: Sequence[float] | None) -> float | None:
    """A number of the span for pictures that chance takes, None for the others."""
    if chance is None or span is None:
        return None
    draws = python_stream(seed, "start noise", name)
    return draws.uniform(*span) if draws.random() < chance else None
