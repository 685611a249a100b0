"""Latents that are small in the first steps and grow while they are sampled.

So a large picture is composed as one of the size that the model was trained at, and fewer numbers are computed. Where
latents grow they are enlarged between the two halves of an ancestral step: noise is taken away, and new noise of the
larger size is added.

Source: Kohya S. 2023, "Gradual Latent"; ancestral steps as in K. Crowson's k-diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from library.diffusion.betas import PUBLISHED, BetaSchedule
from library.diffusion.ddpm_samplers import build_scheduler, slope
from library.diffusion.samplers import guided
from library.errors import OptionError
from library.rng import torch_stream

GROWING_SAMPLERS = ("euler", "euler_a", "k_euler", "k_euler_a")
_MULTIPLE = 8  # of the sides of small latents: U-Nets halve them three times


class Unsharp(NamedTuple):
    """Sharpening of enlarged latents.

    Attributes:
        size: Of the blur that is taken away, in latents; odd.
        sigma: Standard deviation of the blur.
        strength: How much of it.
        is_of_result: What the step has come to is sharpened, not what it begins from.
    """

    size: int
    sigma: float
    strength: float
    is_of_result: bool

    def of(self, latents: Tensor) -> Tensor:
        """Shape [B, C, h, w]."""
        places = torch.arange(self.size, device=latents.device) - self.size // 2
        weights = torch.exp(-(places**2) / (2 * self.sigma**2))
        weights = (weights / weights.sum()).expand(latents.shape[1], 1, 1, -1)
        half, channels = self.size // 2, latents.shape[1]
        blurred = F.pad(latents, (half, half, half, half), mode="replicate")
        blurred = F.conv2d(blurred, weights, groups=channels)
        blurred = F.conv2d(blurred, weights.transpose(-1, -2), groups=channels)
        return latents + (latents - blurred) * self.strength


@dataclass(frozen=True)
class Growth:
    """How latents grow.

    Attributes:
        timestep: They begin to grow below this one.
        ratio: Of their sides in the beginning, to those of the picture.
        ratio_step: Added to it each time.
        every_n_steps: Steps from one time to the next.
        noise_scale: Factor on the noise that is added where they grow.
        unsharp: How they are sharpened there; None for not.
    """

    timestep: float = 750
    ratio: float = 0.5
    ratio_step: float = 0.125
    every_n_steps: int = 3
    noise_scale: float = 1.0
    unsharp: Unsharp | None = None

    def sizes(self, timesteps: Sequence[float], height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the latents at each step.

        Raises:
            OptionError: They do not reach their full size.
        """
        ratio, waited, sizes = min(self.ratio, 1.0), self.every_n_steps, []
        for timestep in timesteps:
            sizes.append((_side(height, ratio), _side(width, ratio)))
            if timestep < self.timestep and ratio < 1 and waited >= self.every_n_steps:
                ratio, waited = min(ratio + self.ratio_step, 1.0), 1
            else:
                waited += 1
        if sizes[-1] != (height, width):
            raise OptionError(
                f"--gradual_latent_timesteps: in {len(sizes)} steps latents grow to {sizes[-1][1]}x{sizes[-1][0]} of "
                f"{width}x{height} only. Take more --steps, or a greater --gradual_latent_ratio_step."
            )
        return sizes


@torch.no_grad()
def sample_growing(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    *,
    growth: Growth,
    sampler: str,
    num_steps: int,
    guidance_scale: float = 1.0,
    is_velocity: bool = False,
    is_zero_terminal: bool = False,
    schedule: BetaSchedule = PUBLISHED,
    seed: int | Sequence[int] = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """From noise to clean latents with the steps of Euler's method; see `sample_ddpm` for what is not said here.

    Args:
        predict: Is called with latents of growing sizes.
        noise: In the full size, of which a part is the noise of small latents. Shape [B, C, h, w].
        growth: How they grow.
        sampler: One of `GROWING_SAMPLERS`.

    Raises:
        OptionError: The latents do not reach their full size.
        ValueError: There is no such sampler.
    """
    if sampler not in GROWING_SAMPLERS:
        raise ValueError(f"{sampler} cannot grow latents")
    scheduler = build_scheduler(sampler, is_velocity=is_velocity, is_zero_terminal=is_zero_terminal, schedule=schedule)
    scheduler.set_timesteps(num_steps)
    timesteps, levels = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    sizes = growth.sizes(timesteps, *noise.shape[-2:])
    seeds = [seed] * len(noise) if isinstance(seed, int) else seed
    draws = [torch_stream(own, "sampler", row if isinstance(seed, int) else 0) for row, own in enumerate(seeds)]
    is_ancestral = sampler.endswith("_a")
    latents = noise[..., : sizes[0][0], : sizes[0][1]].float() * scheduler.init_noise_sigma
    for step, timestep in enumerate(timesteps):
        rows = latents / math.sqrt(levels[step] ** 2 + 1)
        prediction = guided(predict, rows, timestep, guidance_scale)
        noise_in = slope(prediction, latents, levels[step], is_velocity=is_velocity)
        size = sizes[min(step + 1, len(sizes) - 1)]
        grows = size != sizes[step]
        lower, added = _ancestral(levels[step], levels[step + 1]) if is_ancestral or grows else (levels[step + 1], 0.0)
        change = lower - levels[step]
        latents = _grown(latents, noise_in * change, size, growth.unsharp) if grows else latents + noise_in * change
        if added:
            latents = latents + _drawn(draws, latents) * (added * (growth.noise_scale if grows else 1.0))
        if on_step is not None:
            on_step(step + 1, num_steps)
    return latents


def _side(side: int, ratio: float) -> int:
    return side if ratio >= 1 else min(max(int(side * ratio) // _MULTIPLE * _MULTIPLE, _MULTIPLE), side)


def _ancestral(level: float, following: float) -> tuple[float, float]:
    """(level to go down to, deviation of the noise that leads up again to the following level)"""
    added = math.sqrt(following**2 * (level**2 - following**2) / level**2)
    return math.sqrt(following**2 - added**2), added


def _grown(latents: Tensor, change: Tensor, size: tuple[int, int], unsharp: Unsharp | None) -> Tensor:
    """Latents after a change, in another size."""
    larger, change = _resized(latents, size), _resized(change, size)
    if unsharp is None:
        return larger + change
    return unsharp.of(larger + change) if unsharp.is_of_result else unsharp.of(larger) + change


def _resized(latents: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(latents, size, mode="bicubic", align_corners=False)


def _drawn(draws: Sequence[Any], latents: Tensor) -> Tensor:
    """Standard normal, each row by its own generator. The shape of the latents."""
    rows = [torch.randn(latents.shape[1:], generator=own) for own in draws]
    return torch.stack(rows).to(latents.device)
