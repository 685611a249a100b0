"""The noise of a batch: plain, shifted per channel, with coarse structure, or stronger in the input than in the target.

Every number is drawn on the CPU from the sample's own streams, so the batch a sample is in changes nothing: a random
strength is drawn for each sample, and coarse noise is scaled to a standard deviation of 1 within each sample.

Source: N. Guttenberg 2023, "Diffusion with Offset Noise" (offset); J. Whitaker 2023, "Multi-Resolution Noise for
Diffusion Model Training" (coarser resolutions); Ning et al. 2023, arXiv:2301.11706 (input perturbation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from library.device import send
from library.errors import OptionError
from library.rng import normal_per_sample, python_stream, stream_seed, torch_stream, uniform_per_sample


@dataclass(frozen=True)
class Noise:
    """Noise of the samples of a batch.

    Attributes:
        target: What the model has to find. Shape [B, C, h, w], float32.
        added: What goes into the latents; the same tensor unless the input is perturbed.
    """

    target: Tensor
    added: Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """How noise differs from the plain one. Names are those of the options.

    Attributes:
        noise_offset: Standard deviation of a shift of each channel; None or 0 for none.
        noise_offset_random_strength: Draw it between 0 and this for each sample.
        adaptive_noise_scale: Added to it: this times the size of the channel's mean in the latents. May be negative.
        multires_noise_iterations: Number of resolutions, the full one among them, of added noise; None or 0 for none.
        multires_noise_discount: Factor from each of them to the next coarser one.
        ip_noise_gamma: Strength of noise that the latents get and the target does not; None or 0 for none.
        ip_noise_gamma_random_strength: Draw it between 0 and this for each sample.

    Raises:
        OptionError: A setting is out of its range, or needs another one; names the option.
    """

    noise_offset: float | None = None
    noise_offset_random_strength: bool = False
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float | None = None
    ip_noise_gamma_random_strength: bool = False

    def __post_init__(self) -> None:
        for name in ("noise_offset", "multires_noise_iterations", "multires_noise_discount", "ip_noise_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise OptionError(f"--{name} must be at least 0, got {value}.")
        if self.adaptive_noise_scale is None:
            return
        if not math.isfinite(self.adaptive_noise_scale):
            raise OptionError(f"--adaptive_noise_scale must be a number, got {self.adaptive_noise_scale}.")
        if not self.noise_offset:
            raise OptionError("--adaptive_noise_scale needs --noise_offset, which it is added to.")


def plain_noise(seeds: Sequence[int], latents: Tensor) -> Tensor:
    """Standard normal noise in the shape and on the device of the latents, float32, one seed for each sample."""
    return send(normal_per_sample(seeds, latents.shape[1:]), latents.device)


def draw_noise(settings: NoiseSettings, seeds: Sequence[int], latents: Tensor) -> Noise:
    """The noise of a batch.

    Args:
        settings: Which changes are made to plain noise: the offset first, then coarser resolutions, then the input.
        seeds: One for each sample; what is drawn beside the plain noise has streams of its own under it.
        latents: Scaled; only read. Shape [B, C, h, w].
    """
    noise, device = plain_noise(seeds, latents), latents.device
    if settings.noise_offset:
        shift = send(normal_per_sample(_streams(seeds, "offset"), (latents.shape[1], 1, 1)), device)
        strength = _strengths(
            settings.noise_offset, seeds, "offset_strength", is_random=settings.noise_offset_random_strength
        )
        noise = offset_noise(noise, latents, shift, send(strength, device), settings.adaptive_noise_scale)
    if settings.multires_noise_iterations:
        iterations, discount = settings.multires_noise_iterations, settings.multires_noise_discount
        coarse = [coarse_noise(seed, latents.shape[1:], iterations=iterations, discount=discount) for seed in seeds]
        noise = with_unit_deviation(noise + send(torch.stack(coarse), device))
    if not settings.ip_noise_gamma:
        return Noise(noise, noise)
    extra = plain_noise(_streams(seeds, "ip"), latents)
    gamma = _strengths(settings.ip_noise_gamma, seeds, "ip_strength", is_random=settings.ip_noise_gamma_random_strength)
    return Noise(noise, noise + send(gamma, device) * extra)


def offset_noise(
    noise: Tensor, latents: Tensor, shift: Tensor, strength: Tensor | float, adaptive_scale: float | None = None
) -> Tensor:
    """Shift the noise of each channel, so that the model learns to change the brightness of a whole picture.

    Args:
        noise: Shape [B, C, h, w].
        latents: Scaled; read only with an adaptive scale. Shape [B, C, h, w].
        shift: Standard normal draws. Shape [B, C, 1, 1].
        strength: Standard deviation of the shift. A number, or shape [B, 1, 1, 1].
        adaptive_scale: Added to the strength, which stays at least 0: this times |mean of the channel's latents|.
    """
    if adaptive_scale is None:
        return noise + strength * shift
    means = latents.float().mean((2, 3), keepdim=True)
    return noise + (strength + adaptive_scale * means.abs()).clamp(min=0) * shift


def coarse_noise(seed: int, shape: Sequence[int], *, iterations: int, discount: float) -> Tensor:
    """Noise of one sample at falling resolutions, scaled up bilinearly and summed.

    Level i has weight discount^i and sides r^i times shorter, r drawn between 2 and 4 for each level; a level with a
    side of 1 is the last.

    Args:
        seed: Of the sample.
        shape: [C, h, w].
        iterations: Greatest number of levels, level 0 of the full size among them.
        discount: At least 0.

    Returns:
        Shape [C, h, w], float32, on the CPU.
    """
    channels, height, width = shape
    factors, normals = python_stream(seed, "coarse_sizes"), torch_stream(seed, "coarse")
    total = torch.zeros(1, channels, height, width)
    for level in range(iterations):
        factor = (2 + 2 * factors.random()) ** level
        size = max(1, int(height / factor)), max(1, int(width / factor))
        draw = torch.randn(1, channels, *size, generator=normals)
        total += discount**level * F.interpolate(draw, (height, width), mode="bilinear")
        if 1 in size:
            break
    return total[0]


def with_unit_deviation(noise: Tensor) -> Tensor:
    """Divide each sample by the standard deviation of all its elements. Shape [B, C, h, w]."""
    return noise / noise.std((1, 2, 3), keepdim=True)


def _strengths(strength: float, seeds: Sequence[int], stream: str, *, is_random: bool) -> Tensor:
    """One for each sample: the same, or drawn between 0 and it. Shape [B, 1, 1, 1], on the CPU."""
    if is_random:
        return strength * uniform_per_sample(_streams(seeds, stream), (1, 1, 1))
    return torch.full((len(seeds), 1, 1, 1), strength)


def _streams(seeds: Sequence[int], stream: str) -> list[int]:
    return [stream_seed(seed, stream) for seed in seeds]
