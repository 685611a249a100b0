"""From noise, or from pictures, to latents of pictures: what happens on the canvas, as pure functions.

Guidance as in Ho & Salimans 2022, arXiv:2207.12598. Drawing over a part of a picture: after each step the rest is
replaced by the noised picture, as in Lugmayr et al. 2022, arXiv:2201.09865, without going back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from library.diffusion.samplers import AfterStep, SamplerWays, Start, StepState
from library.errors import UserError
from library.families.base import Conditioning
from library.generation.conditioning import stacked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.families.base import ModelFamily

Predict = Callable[["Tensor", "Tensor", Conditioning], "Tensor"]
"""(noisy latents [R, C, h, w], timesteps [R], conditioning of R rows) -> prediction [R, C, h, w]. Rows are those of the
prompts, then of the negative prompts, then of empty prompts, as far as there are any; each B."""


@dataclass(frozen=True)
class Guidance:
    """What each picture of a batch is led by.

    Attributes:
        wanted: Of the prompts. B rows.
        negative: Of the negative prompts. None where no picture is led.
        empty: Of empty prompts. None where guidance leads away from the negative prompts.
        scales: Shape [B, 1, 1, 1].
        negative_scales: Shape [B, 1, 1, 1]; None where `empty` is.
    """

    wanted: Conditioning
    negative: Conditioning | None
    empty: Conditioning | None
    scales: Tensor
    negative_scales: Tensor | None

    @property
    def parts(self) -> list[Conditioning]:
        """All that is predicted."""
        return [part for part in (self.wanted, self.negative, self.empty) if part is not None]

    def combine(self, predictions: Sequence[Tensor]) -> Tensor:
        """One prediction of those of `parts`, in float32. Each of shape [B, C, h, w]."""
        wanted, *others = (prediction.float() for prediction in predictions)
        if not others:
            return wanted
        if self.negative_scales is None:
            return others[0] + self.scales * (wanted - others[0])
        negative, empty = others
        return empty + self.scales * (wanted - empty) - self.negative_scales * (negative - empty)


@dataclass(frozen=True)
class Canvas:
    """A batch of pictures before it is drawn.

    Attributes:
        noise: Standard normal. Shape [B, C, h, w].
        guidance: Of each.
        seeds: Of each, for samplers that draw on the way.
        start: Clean latents to begin from; None begins at noise.
        beside: What a denoiser for parts of pictures is shown beside the latents. Shape [B, C', h, w]; None for others.
        mask: 1 where something is drawn, 0 where the picture of `start` stays. Shape [B, 1, h, w]; None is everywhere.
    """

    noise: Tensor
    guidance: Guidance
    seeds: tuple[int, ...]
    start: Start | None = None
    mask: Tensor | None = None
    beside: Tensor | None = None


@dataclass(frozen=True)
class Painter:
    """What draws.

    Attributes:
        family: Of the denoiser.
        denoiser: In evaluation mode.
        computing: The context that it runs in.
        wrap: Changes how the denoiser is called: gets the usual call and gives another.
        after_step: What else happens to the latents after each step.
        ways: What the sampler does otherwise.
    """

    family: ModelFamily
    denoiser: nn.Module
    computing: Callable[[], AbstractContextManager[None]]
    wrap: Callable[[Predict], Predict] | None = None
    after_step: AfterStep | None = None
    ways: SamplerWays | None = None

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the denoiser says."""
        usual = self._plain
        return (usual if self.wrap is None else self.wrap(usual))(latents, timesteps, conditioning)

    def _plain(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.family.predict(self.denoiser, latents, timesteps, conditioning)


def paint(
    painter: Painter,
    canvas: Canvas,
    *,
    num_steps: int,
    sampler: str | None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw a batch.

    Returns:
        Scaled latents, float32. Shape [B, C, h, w].

    Raises:
        UserError: The model gives numbers that are no picture.
    """
    parts = canvas.guidance.parts
    conditioning = stacked(parts)

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        shown = latents if canvas.beside is None else torch.cat([latents, _fitting(canvas.beside, latents)], dim=1)
        rows = shown.repeat(len(parts), 1, 1, 1)
        prediction = painter.predict(rows, timesteps.repeat(len(parts)), conditioning)
        return canvas.guidance.combine(prediction.chunk(len(parts)))

    with painter.computing():
        latents = painter.family.sample(
            predict,
            canvas.noise,
            num_steps=num_steps,
            sampler=sampler,
            seed=canvas.seeds,
            on_step=on_step,
            start=canvas.start,
            after_step=in_turn(kept_outside(canvas), painter.after_step),
            ways=painter.ways,
        )
    if not latents.isfinite().all():
        raise UserError(
            "the model gives NaN or infinite numbers. Use --bf16 instead of --fp16, or none of them; a guidance scale "
            "that is far too large, or a network that diverged in training, gives such numbers too."
        )
    return latents


def _fitting(beside: Tensor, latents: Tensor) -> Tensor:
    """What is shown beside latents, at their size: those that grow are smaller."""
    is_equal = beside.shape[-2:] == latents.shape[-2:]
    return beside if is_equal else functional.interpolate(beside, latents.shape[-2:], mode="area")


def begun_at(canvas: Canvas, latents: Tensor, strength: float) -> Canvas:
    """A canvas that begins at other clean latents; outside of its mask its picture stays."""
    if canvas.start is not None and canvas.mask is not None:
        latents = latents * canvas.mask + canvas.start.latents * (1 - canvas.mask)
    return replace(canvas, start=Start(latents, strength))


def kept_outside(canvas: Canvas) -> AfterStep | None:
    """What keeps the picture where the mask is 0; None without a mask."""
    start, mask, noise = canvas.start, canvas.mask, canvas.noise
    if start is None or mask is None:
        return None

    def keep(latents: Tensor, state: StepState) -> Tensor:
        return latents * mask + state.noised(start.latents, noise) * (1 - mask)

    return keep


def in_turn(*hooks: AfterStep | None) -> AfterStep | None:
    """Several, one after the other; None where there is none."""
    given = [hook for hook in hooks if hook is not None]
    if not given:
        return None

    def all_of_them(latents: Tensor, state: StepState) -> Tensor:
        for hook in given:
            latents = hook(latents, state)
        return latents

    return all_of_them
