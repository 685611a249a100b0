"""Sampling: from noise to latents along the flow that the model predicts.

Source of the noise levels: the list that the published SD3 code, diffusers and ComfyUI ("normal") share.
Euler's method as in Karras et al. 2022, arXiv:2206.00364; guidance as in Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.diffusion.flow import NUM_TIMESTEPS, shift_sigmas

if TYPE_CHECKING:
    from library.diffusion.gradual_latents import Growth


@dataclass(frozen=True)
class Start:
    """Where sampling begins, if not at noise.

    Attributes:
        latents: Clean and scaled. Shape [B, C, h, w].
        strength: Share of the steps that are taken: at 1 all of them, from latents that are nearly noise; at 0 none.
    """

    latents: Tensor
    strength: float

    def first_step(self, num_steps: int, *, rounds_up: bool = False) -> int:
        """How many of the steps are left out.

        Args:
            num_steps: All of them.
            rounds_up: Of a share that is no whole number of steps, the last one is taken too: in diffusers, pipelines
                of flow models do so, and those of U-Nets do not.
        """
        if rounds_up:
            return int(max(num_steps - num_steps * self.strength, 0))
        return num_steps - min(int(num_steps * self.strength), num_steps)


@dataclass(frozen=True)
class StepState:
    """Where sampling stands after a prediction.

    Attributes:
        done: Predictions so far.
        count: Of all.
        timestep: At which the next one is made; None after the last.
        noised: (clean latents, noise) -> latents as noisy as those of this state.
    """

    done: int
    count: int
    timestep: float | None
    noised: Callable[[Tensor, Tensor], Tensor]


AfterStep = Callable[[Tensor, StepState], Tensor]
"""(latents, where sampling stands) -> the latents to go on with."""


@dataclass(frozen=True)
class SamplerWays:
    """What samplers of models of 1000 discrete steps may do otherwise.

    Attributes:
        growth: Latents begin small; None for not. Of Euler's methods, and without `Start`.
        counts_from_zero: Timesteps are counted from 0 and not from 1, in ddim and pndm.
    """

    growth: Growth | None = None
    counts_from_zero: bool = False


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
    start: Start | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Follow the predicted velocity from noise to clean latents, in float32.

    Args:
        predict: (noisy_latents [R, C, h, w], timesteps [R]) -> velocity [R, C, h, w]. With guidance R is 2B: the
            first B rows want the prompts' conditioning, the last B the negative prompts'. Without (a scale of 1)
            R is B and no negative is asked for.
        latents: Noise to start from, or to add to what `start` has. Shape [B, C, h, w].
        sigmas: Noise levels, falling, the last 0. Shape [steps + 1].
        guidance_scale: How far to go from the negative prediction towards, and past, the prompt's.
        on_step: Called after each step with the number of steps done and of all steps.
        start: Clean latents to begin from; None begins at noise.
        after_step: Called after each step, before `on_step`.

    Returns:
        Scaled latents. Shape [B, C, h, w], float32.
    """
    first = 0 if start is None else start.first_step(len(sigmas) - 1, rounds_up=True)
    levels = sigmas.tolist()[first:]
    num_steps = len(levels) - 1
    latents = latents.float()
    latents = latents * levels[0] if start is None else _flow_noised(start.latents, latents, levels[0])
    for step in range(num_steps):
        velocity = guided(predict, latents, levels[step] * NUM_TIMESTEPS, guidance_scale)
        latents = latents + velocity * (levels[step + 1] - levels[step])
        if after_step is not None:
            timestep = levels[step + 1] * NUM_TIMESTEPS if step + 1 < num_steps else None
            noised = partial(_flow_noised, level=levels[step + 1])
            latents = after_step(latents, StepState(step + 1, num_steps, timestep, noised))
        if on_step is not None:
            on_step(step + 1, num_steps)
    return latents


def _flow_noised(clean: Tensor, noise: Tensor, level: float) -> Tensor:
    """Clean latents at a noise level, in float32."""
    return clean.float() * (1 - level) + noise.float() * level


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
