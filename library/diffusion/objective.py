"""What a training step asks of the model: corrupt latents, and compare the prediction with something.

Source: Esser et al. 2024, arXiv:2403.03206, for the rectified flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from library.diffusion.flow import (
    NUM_TIMESTEPS,
    WEIGHTING_SCHEMES,
    loss_weights,
    sample_density,
    shift_sigmas,
    to_timesteps,
)
from library.errors import OptionError


@dataclass(frozen=True)
class Draw:
    """Where on the way from latents to noise each sample stands.

    Attributes:
        timesteps: Whole numbers 0..1000. Shape [B], float32, never rounded to half precision.
        sigmas: Noise levels, 0 clean .. 1 noise. Shape [B], float32.
    """

    timesteps: Tensor
    sigmas: Tensor

    def to(self, device: torch.device | str) -> Draw:
        """The same draw on another device."""
        return Draw(self.timesteps.to(device, non_blocking=True), self.sigmas.to(device, non_blocking=True))


@dataclass(frozen=True)
class Terms:
    """What the loss compares.

    Attributes:
        estimate: From the prediction. Shape [B, C, h, w], float32.
        target: Same shape, float32.
        weight: Factor on each sample's loss. Shape [B], float32.
    """

    estimate: Tensor
    target: Tensor
    weight: Tensor


class Objective(Protocol):
    """Pure functions of their arguments; settings are fields of the implementing dataclass."""

    def draw(self, uniform: Tensor, normal: Tensor) -> Draw:
        """Timesteps from draws in [0, 1) and standard normal draws, each of shape [B]."""

    def corrupt(self, latents: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        """Noisy latents [B, C, h, w], float32."""

    def terms(self, prediction: Tensor, latents: Tensor, noise: Tensor, noisy_latents: Tensor, draw: Draw) -> Terms:
        """What the loss compares. All tensors but the draw have the shape [B, C, h, w]."""


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
        low, high = self._range()
        if not 0 <= low <= high <= NUM_TIMESTEPS:
            raise OptionError(
                f"--min_timestep {low} and --max_timestep {high}: the first may not be above the second, "
                f"and both must lie within 0 and {NUM_TIMESTEPS}."
            )

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
        timesteps = to_timesteps(shift_sigmas(levels, self.training_shift), *self._range())
        return Draw(timesteps, timesteps / NUM_TIMESTEPS)

    def corrupt(self, latents: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        """The point at `sigma` on the straight line from latents to noise. Shape [B, C, h, w], float32."""
        sigmas = _per_sample(draw.sigmas)
        return sigmas * noise.float() + (1 - sigmas) * latents.float()

    def terms(self, prediction: Tensor, latents: Tensor, noise: Tensor, noisy_latents: Tensor, draw: Draw) -> Terms:
        """The clean latents that the predicted velocity implies, against the real ones."""
        estimate = noisy_latents.float() - _per_sample(draw.sigmas) * prediction.float()
        return Terms(estimate, latents.float(), loss_weights(self.weighting_scheme, draw.sigmas))

    def _range(self) -> tuple[int, int]:
        low = 0 if self.min_timestep is None else self.min_timestep
        high = NUM_TIMESTEPS if self.max_timestep is None else self.max_timestep
        return low, high


def _per_sample(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)
