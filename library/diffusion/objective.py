"""What a training step asks of the model: corrupt latents, and compare the prediction with something.

Source: Esser et al. 2024, arXiv:2403.03206, for the rectified flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from library.device import send
from library.diffusion.flow import (
    NUM_TIMESTEPS,
    WEIGHTING_SCHEMES,
    flow_snr,
    loss_weights,
    sample_density,
    shift_sigmas,
    to_timesteps,
)
from library.diffusion.noise import Noise, plain_noise
from library.errors import OptionError


@dataclass(frozen=True)
class Draw:
    """Where on the way from latents to noise each sample stands.

    Attributes:
        timesteps: Whole numbers 0..1000. Shape [B], float32, never rounded to half precision.
        sigmas: Factor of the noise in the noisy latents, 0 clean .. 1 noise. Shape [B], float32.
    """

    timesteps: Tensor
    sigmas: Tensor

    def to(self, device: torch.device | str) -> Draw:
        """The same draw on another device, which is not waited for."""
        place = torch.device(device)
        if self.timesteps.device.type == "cpu":
            return Draw(send(self.timesteps, place), send(self.sigmas, place))
        return Draw(self.timesteps.to(place), self.sigmas.to(place))


@dataclass(frozen=True)
class Terms:
    """What the loss compares.

    Attributes:
        estimate: From the prediction. Shape [B, C, h, w], float32.
        target: Same shape, float32.
        weight: Factor on each sample's loss: all weights that depend on the noise level. Shape [B], float32.
    """

    estimate: Tensor
    target: Tensor
    weight: Tensor


class Objective(Protocol):
    """Pure functions of their arguments; settings are fields of the implementing dataclass."""

    def draw(self, uniform: Tensor, normal: Tensor) -> Draw:
        """Timesteps from draws in [0, 1) and standard normal draws, each of shape [B]."""

    def at(self, timesteps: Tensor) -> Draw:
        """The draw of given timesteps, whole numbers that `draw` can give. Shape [B]."""

    def draw_noise(self, seeds: Sequence[int], latents: Tensor) -> Noise:
        """The noise of each sample, from streams under its seed. `latents` [B, C, h, w] are only read."""

    def corrupt(self, latents: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        """Noisy latents [B, C, h, w], float32. `noise` is Noise.added."""

    def terms(self, prediction: Tensor, latents: Tensor, noise: Tensor, noisy_latents: Tensor, draw: Draw) -> Terms:
        """What the loss compares. All tensors but the draw have the shape [B, C, h, w]; `noise` is Noise.target."""

    def snr(self, draw: Draw) -> Tensor:
        """Signal-to-noise ratio of each sample, 0 to infinity. Shape [B], float32."""


@dataclass(frozen=True, kw_only=True)
class FlowObjective:
    """Rectified flow: the model predicts noise - latents; the loss compares the clean latents this implies.

    Attributes:
        weighting_scheme: One of flow.WEIGHTING_SCHEMES; some change the timestep density, some the loss weight.
        training_shift: Above 1 trains noisier levels more often; 1 changes nothing.
        logit_mean: For `logit_normal`.
        logit_std: For `logit_normal`.
        mode_scale: For `mode`.
        min_timestep: Lowest timestep; None for 0.
        max_timestep: Timesteps stay below this (or are this, where both are equal); None for 1000.

    Raises:
        OptionError: A setting is out of its range; names the option.
    """

    weighting_scheme: str = "uniform"
    training_shift: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: int | None = None
    max_timestep: int | None = None

    def __post_init__(self) -> None:
        if self.weighting_scheme not in WEIGHTING_SCHEMES:
            known = ", ".join(WEIGHTING_SCHEMES)
            raise OptionError(f"--weighting_scheme {self.weighting_scheme}: not known. Use one of {known}.")
        if not (self.training_shift > 0 and math.isfinite(self.training_shift)):
            raise OptionError(f"--training_shift must be above 0, got {self.training_shift}.")
        if not (self.logit_std >= 0 and math.isfinite(self.logit_std)):
            raise OptionError(f"--logit_std must be at least 0, got {self.logit_std}.")
        self._range()

    def at(self, timesteps: Tensor) -> Draw:
        """The draw of given timesteps, sigma a thousandth of each. Shape [B]."""
        timesteps = timesteps.float()
        return Draw(timesteps, timesteps / NUM_TIMESTEPS)

    def draw(self, uniform: Tensor, normal: Tensor) -> Draw:
        """Timesteps and noise levels from plain draws.

        Args:
            uniform: Draws in [0, 1). Shape [B].
            normal: Standard normal draws. Shape [B].
        """
        levels = sample_density(
            self.weighting_scheme,
            uniform,
            normal,
            logit_mean=self.logit_mean,
            logit_std=self.logit_std,
            mode_scale=self.mode_scale,
        )
        return self.at(to_timesteps(shift_sigmas(levels, self.training_shift), *self._range()))

    def draw_noise(self, seeds: Sequence[int], latents: Tensor) -> Noise:
        """Plain noise, the same in latents and target."""
        noise = plain_noise(seeds, latents)
        return Noise(noise, noise)

    def corrupt(self, latents: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        """The point at `sigma` on the straight line from latents to noise. Shape [B, C, h, w], float32."""
        sigmas = _per_sample(draw.sigmas)
        return sigmas * noise.float() + (1 - sigmas) * latents.float()

    def terms(self, prediction: Tensor, latents: Tensor, noise: Tensor, noisy_latents: Tensor, draw: Draw) -> Terms:
        """The clean latents that the predicted velocity implies, against the real ones."""
        estimate = noisy_latents.float() - _per_sample(draw.sigmas) * prediction.float()
        return Terms(estimate, latents.float(), loss_weights(self.weighting_scheme, draw.sigmas))

    def snr(self, draw: Draw) -> Tensor:
        """((1 - sigma) / sigma)^2. Shape [B], float32."""
        return flow_snr(draw.sigmas)

    def _range(self) -> tuple[int, int]:
        return timestep_range(self.min_timestep, self.max_timestep)


def timestep_range(min_timestep: int | None, max_timestep: int | None) -> tuple[int, int]:
    """Lowest timestep, and the one that they stay below; None for all of 0..999.

    Raises:
        OptionError: They are out of order or out of range.
    """
    low = 0 if min_timestep is None else min_timestep
    high = NUM_TIMESTEPS if max_timestep is None else max_timestep
    if not 0 <= low <= high <= NUM_TIMESTEPS:
        raise OptionError(
            f"--min_timestep {low} and --max_timestep {high}: the first may not be above the second, "
            f"and both must lie within 0 and {NUM_TIMESTEPS}."
        )
    return low, high


def _per_sample(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)
