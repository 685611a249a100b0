"""Sampling: from noise to latents along the flow that the model predicts.

Source of the noise levels: the list that the published SD3 code, diffusers and ComfyUI ("normal") share.
Euler's method as in Karras et al. 2022, arXiv:2206.00364; guidance as in Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from library.diffusion.flow import NUM_TIMESTEPS, shift_sigmas


def flow_sigmas(num_steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels of a sampling run, from 1 down to 0.

    The ends of the evenly spaced list are already shifted when the shift is applied to it. That looks like
    an oversight, but every inference tool does it.

    Args:
        num_steps: At least 1.
        shift: Above 0.

    Returns:
        Shape [num_steps + 1], float32; the last is 0.

    Raises:
        ValueError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    lowest = shift_sigmas(torch.tensor(1 / NUM_TIMESTEPS, dtype=torch.float64), shift)
    evenly = torch.linspace(1.0, float(lowest), num_steps, dtype=torch.float64)
    return torch.cat([shift_sigmas(evenly, shift), torch.zeros(1, dtype=torch.float64)]).float()


@torch.no_grad()
def euler_flow(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    sigmas: Tensor,
    *,
    guidance_scale: float = 1.0,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Follow the predicted velocity from noise to clean latents, in float32.

    Args:
        predict: (noisy_latents [R, C, h, w], timesteps [R]) -> velocity [R, C, h, w]. With guidance R is 2B: the
            first B rows want the prompts' conditioning, the last B the negative prompts'. Without (a scale of 1)
            R is B and no negative is asked for.
        latents: Noise to start from. Shape [B, C, h, w].
        sigmas: Noise levels, falling, the last 0. Shape [steps + 1].
        guidance_scale: How far to go from the negative prediction towards, and past, the prompt's.
        on_step: Called after each step with the number of steps done and of all steps.

    Returns:
        Scaled latents. Shape [B, C, h, w], float32.
    """
    levels = sigmas.tolist()
    num_steps = len(levels) - 1
    latents = latents.float() * levels[0]
    for step in range(num_steps):
        velocity = guided(predict, latents, levels[step] * NUM_TIMESTEPS, guidance_scale)
        latents = latents + velocity * (levels[step + 1] - levels[step])
        if on_step is not None:
            on_step(step + 1, num_steps)
    return latents


def guided(
    predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, timestep: float, guidance_scale: float
) -> Tensor:
    """The prediction at one timestep, led away from that of the negative prompts. Shape [B, C, h, w], float32.

    Args:
        predict: As for `euler_flow`.
        latents: As the model takes them. Shape [B, C, h, w].
        timestep: 0..1000.
        guidance_scale: 1 asks for no negative prediction.
    """
    is_guided = guidance_scale != 1.0
    rows = torch.cat([latents, latents]) if is_guided else latents
    prediction = predict(rows, torch.full((rows.shape[0],), timestep, device=latents.device)).float()
    if not is_guided:
        return prediction
    wanted, negative = prediction.chunk(2)
    return negative + guidance_scale * (wanted - negative)
