"""Sampling from models of 1000 discrete steps: the samplers that users know by name, over the schedulers of diffusers.

The noise levels are those of the betas that the model was trained with. Where these end in pure noise, sampling begins
there: steps are counted from the last timestep backwards. The first step of methods of second order is Euler's then:
the difference of two predictions, times a noise level of thousands, would be larger than any picture.

Source of the samplers: Song et al. 2020, arXiv:2010.02502 (ddim); Liu et al. 2022, arXiv:2202.09778 (pndm); Karras et
al. 2022, arXiv:2206.00364, and K. Crowson's k-diffusion (euler, heun, lms, dpm_2 and the ancestral ones); Lu et al.
2022, arXiv:2206.00927 and arXiv:2211.01095 (dpmsolver, dpmsolver++, dpmsingle).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from library.diffusion.betas import PUBLISHED, BetaSchedule
from library.diffusion.ddpm import with_zero_terminal_snr
from library.diffusion.flow import NUM_TIMESTEPS
from library.diffusion.samplers import AfterStep, Start, StepState, guided
from library.rng import torch_stream

# name -> scheduler of diffusers, and where it differs from what the scheduler does by itself. The offset and the last
# step of ddim and pndm are those of the published models.
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("ddim.DDIM", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "pndm": ("pndm.PNDM", {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
    "lms": ("lms_discrete.LMSDiscrete", {}),
    "euler": ("euler_discrete.EulerDiscrete", {}),
    "euler_a": ("euler_ancestral_discrete.EulerAncestralDiscrete", {}),
    "heun": ("heun_discrete.HeunDiscrete", {}),
    "dpm_2": ("k_dpm_2_discrete.KDPM2Discrete", {}),
    "dpm_2_a": ("k_dpm_2_ancestral_discrete.KDPM2AncestralDiscrete", {}),
    "dpmsolver": (
        "dpmsolver_multistep.DPMSolverMultistep",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": ("dpmsolver_multistep.DPMSolverMultistep", {}),
    "dpmsingle": ("dpmsolver_singlestep.DPMSolverSinglestep", {"lower_order_final": True}),
}
_WITH_PREFIX = ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")  # known as k_lms, ... too
DDPM_SAMPLERS = (*_SCHEDULERS, *(f"k_{name}" for name in _WITH_PREFIX))
DEFAULT_SAMPLER = "ddim"

Predict = Callable[[Tensor, Tensor], Tensor]

_NEARLY_NOTHING = 2.0**-24  # share of the latents at a last step that has none, for solvers that divide by it


@torch.no_grad()
def sample_ddpm(
    predict: Predict,
    noise: Tensor,
    *,
    sampler: str = DEFAULT_SAMPLER,
    num_steps: int,
    guidance_scale: float = 1.0,
    is_velocity: bool = False,
    is_zero_terminal: bool = False,
    schedule: BetaSchedule = PUBLISHED,
    seed: int | Sequence[int] = 0,
    on_step: Callable[[int, int], None] | None = None,
    start: Start | None = None,
    after_step: AfterStep | None = None,
    counts_from_zero: bool = False,
) -> Tensor:
    """From noise to clean latents, in float32.

    Args:
        predict: (noisy_latents [R, C, h, w], timesteps [R]) -> prediction [R, C, h, w]. With guidance R is 2B: the
            first B rows want the prompts' conditioning, the last B the negative prompts'. Without (a scale of 1)
            R is B. Timesteps lie within 0 and 999 and need not be whole.
        noise: Standard normal. Shape [B, C, h, w].
        sampler: One of DDPM_SAMPLERS.
        num_steps: At least 1. Samplers of second order predict twice in a step, but once in the first where the
            schedule ends in pure noise.
        guidance_scale: How far to go from the negative prediction towards, and past, the prompt's.
        is_velocity: What the model predicts is the velocity.
        is_zero_terminal: Its schedule ends in pure noise.
        schedule: How much noise each of its steps adds, before that.
        seed: Of the noise that ancestral samplers add; each row has a stream of its own. Or the seed of each row: what
            is drawn for it does not depend on its place then.
        on_step: Called after each prediction with the number of predictions done and of all.
        start: Clean latents that `noise` is added to, and from which less steps are taken; None begins at noise.
        after_step: Called after each prediction, before `on_step`.
        counts_from_zero: Timesteps of ddim and pndm are counted from 0 and not from 1.

    Returns:
        Scaled latents. Shape [B, C, h, w], float32.

    Raises:
        ValueError: There is no such sampler, or `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    scheduler = build_scheduler(
        sampler,
        is_velocity=is_velocity,
        is_zero_terminal=is_zero_terminal,
        schedule=schedule,
        steps_offset=0 if counts_from_zero else 1,
    )
    scheduler.set_timesteps(num_steps)
    latents, timesteps = _beginning(scheduler, noise, start, num_steps)
    predicted = partial(_predicted, predict, guidance_scale)
    step = first = partial(_step, scheduler, predicted, _draws(scheduler, seed, len(noise)))
    if is_zero_terminal and scheduler.order == 2 and 1 < len(timesteps) == len(scheduler.timesteps):
        timesteps = torch.cat([timesteps[:1], timesteps[2:]])
        first = partial(_plain_step, scheduler, predicted, is_velocity=is_velocity)
    for done, timestep in enumerate(timesteps, start=1):
        latents = (first if done == 1 else step)(latents, timestep)
        if after_step is not None:
            latents = after_step(latents, _state(scheduler, timesteps, done))
        if on_step is not None:
            on_step(done, len(timesteps))
    return latents


def _beginning(scheduler: Any, noise: Tensor, start: Start | None, num_steps: int) -> tuple[Tensor, Tensor]:
    """The latents that sampling begins at, and its timesteps."""
    if start is None:
        return noise.float() * scheduler.init_noise_sigma, scheduler.timesteps
    timesteps = _timesteps_from(scheduler, start.first_step(num_steps))
    latents = start.latents.float()
    return scheduler.add_noise(latents, noise.float(), timesteps[:1]) if len(timesteps) else latents, timesteps


def _predicted(predict: Predict, scale: float, rows: Tensor, timestep: Tensor) -> Tensor:
    return guided(predict, rows, float(timestep), scale)


def _step(scheduler: Any, predicted: Predict, draws: dict[str, Any], latents: Tensor, timestep: Tensor) -> Tensor:
    """As the scheduler makes it."""
    prediction = predicted(scheduler.scale_model_input(latents, timestep), timestep)
    following: Tensor = scheduler.step(prediction, timestep, latents, **draws).prev_sample
    return following


def _plain_step(scheduler: Any, predicted: Predict, latents: Tensor, timestep: Tensor, *, is_velocity: bool) -> Tensor:
    """The first step of a method of second order, by Euler's. The scheduler, not told of it, goes on behind it."""
    level, following = float(scheduler.sigmas[0]), float(scheduler.sigmas[scheduler.order])
    scheduler.set_begin_index(scheduler.order)
    prediction = predicted(latents / _scale(level), timestep)
    return latents + slope(prediction, latents, level, is_velocity=is_velocity) * (following - level)


def _draws(scheduler: Any, seed: int | Sequence[int], num_rows: int) -> dict[str, Any]:
    """Arguments of a scheduler that draws noise on the way."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    if isinstance(seed, int):
        return {"generator": [torch_stream(seed, "sampler", row) for row in range(num_rows)]}
    return {"generator": [torch_stream(own, "sampler", 0) for own in seed]}


def _timesteps_from(scheduler: Any, first: int) -> Tensor:
    """The timesteps without those of the first steps; the scheduler learns where it begins."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    timesteps: Tensor = scheduler.timesteps
    if not getattr(scheduler.config, "skip_prk_steps", False):
        return timesteps[first * scheduler.order :]
    levels = torch.cat([timesteps[:1], timesteps[2:]])[first:]  # pndm passes its second level twice, wherever it begins
    return torch.cat([levels[:2], levels[1:2], levels[2:]])


def slope(prediction: Tensor, latents: Tensor, level: float, *, is_velocity: bool) -> Tensor:
    """Of the latents by the noise level: the noise that is in them. Shape of the latents.

    Args:
        prediction: For latents that were scaled for the model.
        latents: As samplers of noise levels have them, the noise unscaled.
        level: Of the noise, above 0.
        is_velocity: What is predicted is the velocity.
    """
    if not is_velocity:
        return prediction
    clean = latents / (level**2 + 1) - prediction * (level / _scale(level))
    return (latents - clean) / level


def _scale(level: Tensor | float) -> float:
    """Deviation of latents with so much noise."""
    return math.sqrt(float(level) ** 2 + 1)


def _state(scheduler: Any, timesteps: Tensor, done: int) -> StepState:
    """Where sampling stands after so many predictions."""
    if done == len(timesteps):
        return StepState(done, len(timesteps), None, lambda clean, noise: clean.float())
    noised = partial(_noised, scheduler, timesteps[done : done + 1])
    return StepState(done, len(timesteps), float(timesteps[done]), noised)


def _noised(scheduler: Any, timestep: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    noisy: Tensor = scheduler.add_noise(clean.float(), noise.float(), timestep)
    return noisy


def build_scheduler(
    sampler: str,
    *,
    is_velocity: bool,
    is_zero_terminal: bool,
    schedule: BetaSchedule = PUBLISHED,
    steps_offset: int = 1,
) -> Any:
    """The scheduler of diffusers for a name, on the CPU, with the betas that a model was trained with. The offset is
    that of samplers that have it above.

    Raises:
        ValueError: There is no such sampler.
    """
    name = sampler.removeprefix("k_")
    if sampler not in DDPM_SAMPLERS:
        raise ValueError(f"no sampler is called {sampler!r}")
    kind, settings = _SCHEDULERS[name]
    settings = {key: steps_offset if key == "steps_offset" else value for key, value in settings.items()}
    scheduler_class = _scheduler_class(kind)
    betas = schedule.betas()
    if is_zero_terminal:
        betas = with_zero_terminal_snr(betas)
        if "timestep_spacing" in inspect.signature(scheduler_class).parameters:
            settings = {**settings, "timestep_spacing": "trailing"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that dpmsolver is out of fashion
        scheduler = scheduler_class(
            num_train_timesteps=NUM_TIMESTEPS,
            trained_betas=betas.numpy(),
            prediction_type="v_prediction" if is_velocity else "epsilon",
            **settings,
        )
    if is_zero_terminal and not (name == "ddim" and is_velocity):  # which divides by nothing
        scheduler.alphas_cumprod[-1] = _NEARLY_NOTHING
    if name == "lms":
        scheduler.get_lms_coefficient = partial(_lms_coefficient_of, scheduler)
    return scheduler


def _lms_coefficient_of(scheduler: Any, order: int, step: int, term: int) -> float:
    """Sampling that begins later has no more derivatives than it has made steps; the scheduler counts all steps."""
    known = min(order, len(scheduler.derivatives))
    return lms_coefficient(scheduler.sigmas, known, step, term) if term < known else 0.0


def _scheduler_class(kind: str) -> Any:
    """From its own file: the package gives out a class that needs scipy only where that is installed."""
    file, name = kind.split(".")
    return getattr(import_module(f"diffusers.schedulers.scheduling_{file}"), f"{name}Scheduler")


def lms_coefficient(sigmas: Tensor, order: int, step: int, term: int) -> float:
    """Weight of an earlier derivative in a linear multistep: the integral of its Lagrange polynomial over the step.

    The same as in diffusers, which needs scipy for it; the integrand is a polynomial, so this is exact.

    Args:
        sigmas: Noise levels of all steps. Shape [steps + 1].
        order: Derivatives that count, at least 1.
        step: Of the run, from 0.
        term: The derivative, 0 for that of this step, 1 for that of the one before.
    """
    levels = sigmas.double().numpy()
    start = levels[step]  # the origin, so that large noise levels do not cancel out
    own = levels[step - term] - start
    others = [levels[step - index] - start for index in range(order) if index != term]
    basis = Polynomial.fromroots(others) if others else Polynomial([1.0])
    scale = float(numpy.prod([own - other for other in others]))
    return float(basis.integ()(levels[step + 1] - start)) / scale
