"""Rectified flow: timestep densities, the shift, loss weights of SD3.

Pure functions in float32. Random numbers come in as arguments, so one test vector pins one result.
sigma is 0 for clean latents and 1 for pure noise; a timestep is 1000 sigma.

Source: Esser et al. 2024, arXiv:2403.03206, section 3. (The paper's other names for the densities:
logit-normal, mode with heavy tails, CosMap.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
WEIGHTING_SCHEMES = ("uniform", "none", "sigma_sqrt", "logit_normal", "mode", "cosmap")


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Move noise levels towards pure noise, as larger images need.

    Args:
        sigmas: Noise levels in [0, 1]. Any shape.
        shift: Above 0; 1 changes nothing.

    Returns:
        Noise levels in [0, 1], in the same order.

    Raises:
        ValueError: `shift` is not above 0.
    """
    if shift <= 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sample_density(
    scheme: str, uniform: Tensor, normal: Tensor, *, logit_mean: float, logit_std: float, mode_scale: float
) -> Tensor:
    """Turn plain draws into noise levels that follow a scheme's density, before the shift.

    Args:
        scheme: One of WEIGHTING_SCHEMES. `sigma_sqrt` and `cosmap` weight the loss and leave the density uniform.
        uniform: Draws in [0, 1). Shape [B].
        normal: Standard normal draws. Shape [B].
        logit_mean: Of the normal distribution under the sigmoid (`logit_normal`).
        logit_std: As above.
        mode_scale: How strongly `mode` leaves the uniform density. Large values are held in [0, 1].

    Returns:
        Noise levels in [0, 1]. Shape [B], float32.
    """
    if scheme == "logit_normal":
        return torch.sigmoid(normal.float() * logit_std + logit_mean)
    u = uniform.float()
    if scheme == "mode":
        bend = torch.cos(math.pi * u / 2) ** 2 - 1 + u
        return (1 - u - mode_scale * bend).clamp(0, 1)
    return u


def to_timesteps(levels: Tensor, min_timestep: int, max_timestep: int) -> Tensor:
    """Map levels in [0, 1] to whole timesteps min .. max-1 (max for a level of exactly 1). Shape [B], float32."""
    return (levels * (max_timestep - min_timestep) + min_timestep).trunc()


def flow_snr(sigmas: Tensor) -> Tensor:
    """Signal-to-noise ratio ((1 - sigma) / sigma)^2: infinite for clean latents, 0 for noise. Shape [B], float32."""
    sigmas = sigmas.float()
    return ((1 - sigmas) / sigmas) ** 2


def loss_weights(scheme: str, sigmas: Tensor) -> Tensor:
    """Weight of the loss on the clean latents at each noise level.

    At sigma 0 `sigma_sqrt` would be infinite (times a loss of 0); it takes the weight of timestep 1 there.

    Args:
        scheme: One of WEIGHTING_SCHEMES.
        sigmas: Noise levels in [0, 1]. Shape [B].

    Returns:
        Finite weights above 0. Shape [B], float32.
    """
    sigmas = sigmas.float()
    if scheme == "sigma_sqrt":
        return sigmas.clamp(min=1 / NUM_TIMESTEPS) ** -2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    return torch.ones_like(sigmas)
