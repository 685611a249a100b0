"""The losses of one batch: its draws, its text states and latents, one prediction.

Everything random is keyed by the run's seed, the epoch and the sample, so that batch size, accumulation,
processes and workers change nothing. Training and validation call the same function; validation has fixed draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from library.device import send
from library.diffusion.loss import LossSettings
from library.diffusion.objective import Draw
from library.families.base import Conditioning, ModelFamily
from library.records import Batch
from library.rng import normal_per_sample, stream_seed, uniform_per_sample
from library.training.encoding.caching import encode_pictures
from library.training.encoding.text_stage import TextStage, TextStates
from library.training.stepping.step import OutputPreservation, compute_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

Window = tuple[float, float, float]  # chance, top and left of the window of positions
States = Callable[[], TextStates]  # gives those of a batch


class SampleLosses(NamedTuple):
    """Losses of the samples of a batch, on the device, and their timesteps, on the CPU. Each of shape [B], float32."""

    losses: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class BatchLoss:
    """Computes losses of batches that lie on the device.

    Attributes:
        vae: Gives the VAE; called only for batches without latents.
        autocast: Gives the context in which networks run.
        unchanged: Gives a context in which the model is as it was before training.
        seed: Of the run.
        attempt: How often the run has gone back to a saved state: another attempt draws other noise.
        tell: Given each batch before the denoiser runs, to tell a network the conditioning pictures.
    """

    family: ModelFamily
    denoiser: nn.Module
    text: TextStage
    vae: Callable[[], nn.Module]
    loss: LossSettings
    autocast: Callable[[], AbstractContextManager[None]]
    unchanged: Callable[[], AbstractContextManager[None]]
    seed: int
    attempt: int = 0
    tell: Callable[[Batch], None] = lambda batch: None

    def __call__(self, batch: Batch) -> SampleLosses:
        """Losses of a batch at the draws of its samples in this epoch."""
        plan, attempt = batch.plan, (self.attempt,) if self.attempt else ()
        part = ("part", batch.offset) if batch.offset else ()
        # keys the draws inside modules (adapter dropout); recomputed blocks draw the same
        torch.manual_seed(stream_seed(self.seed, "forward", plan.epoch, plan.index, *attempt, *part))
        seeds = [stream_seed(self.seed, "noise", plan.epoch, sample, *attempt) for sample in batch.sample_ids]
        time_seeds = [stream_seed(seed, "timestep") for seed in seeds]
        draw = self.family.objective().draw(uniform_per_sample(time_seeds), normal_per_sample(time_seeds, ()))
        lead = stream_seed(self.seed, "noise", plan.epoch, batch.leader or batch.sample_ids[0], *attempt)
        top, left, chance = uniform_per_sample([stream_seed(lead, "position")], (3,))[0].tolist()
        return self._losses(batch, seeds, draw, lambda: self.text.for_batch(batch, self.seed), (chance, top, left))

    @torch.no_grad()
    def at(self, batch: Batch, timestep: float, seed: int) -> SampleLosses:
        """Losses of a batch at one timestep, with noise that depends on seed, sample and timestep only.

        Nothing is dropped, and the window of positions is the one in the middle.
        """
        seeds = [stream_seed(seed, "validation noise", sample, str(timestep)) for sample in batch.sample_ids]
        draw = self.family.objective().at(torch.full((len(seeds),), float(timestep)))

        return self._losses(batch, seeds, draw, lambda: self.text.of_batch(batch), None)

    def _losses(
        self, batch: Batch, seeds: Sequence[int], draw: Draw, states: States, window: Window | None
    ) -> SampleLosses:
        self.tell(batch)
        objective, latents = self.family.objective(), self._latents(batch)
        noise = objective.draw_noise(seeds, latents)
        conditioning = self._conditioning(batch, states)

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            return self._predict(noisy_latents, timesteps, conditioning, window)

        losses = compute_loss(
            latents,
            noise.target,
            draw.to(latents.device),
            predict,
            objective,
            loss=self.loss,
            added_noise=noise.added,
            loss_weights=batch.loss_weights,
            mask=batch.masks,
            preservation=self._preservation(batch, conditioning, states, window),
        )
        return SampleLosses(losses, draw.timesteps)

    def _conditioning(self, batch: Batch, states: States) -> Conditioning:
        with self.autocast():
            own = states()
            return self.family.place(self.family.join_text(own.states, self.denoiser, own.rows), batch.views)

    def _predict(
        self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, window: Window | None
    ) -> Tensor:
        with self.autocast():
            return self.family.predict(self.denoiser, noisy_latents, timesteps, conditioning, position_draw=window)

    def _preservation(
        self, batch: Batch, conditioning: Conditioning, states: States, window: Window | None
    ) -> OutputPreservation | None:
        """For the samples that ask for it, the unchanged model; its text encoders are the unchanged ones, too."""
        if batch.preserves_output is None or not bool(batch.preserves_output.any()):
            return None
        wanted = batch.preserves_output.nonzero().flatten()
        rows = send(wanted, batch.loss_weights.device)

        @torch.no_grad()
        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            with self.unchanged():
                own = self._conditioning(batch, states) if self.text.trained else conditioning
                return self._predict(noisy_latents, timesteps, own.take(rows, wanted), window)

        return OutputPreservation(rows, predict)

    def _latents(self, batch: Batch) -> Tensor:
        """Cached, or encoded now. Scaled, float32. Shape [B, C, h, w]."""
        if batch.latents is not None:
            return batch.latents.float()
        assert batch.images is not None
        return encode_pictures(self.family, self.vae(), batch.images, batch.posterior_seeds).float()
