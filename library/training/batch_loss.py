"""The loss of one batch: its draws, its text states and latents, one prediction.

Everything random is keyed by the run's seed, the epoch and the sample, so that batch size, accumulation,
processes and workers change nothing. Training and validation call the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from library.device import send
from library.diffusion.loss import LossSettings
from library.families.base import Conditioning, ModelFamily
from library.records import Batch
from library.rng import normal_per_sample, stream_seed, uniform_per_sample
from library.training.caching import encode_pictures
from library.training.step import OutputPreservation, compute_loss
from library.training.text_stage import TextStage

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class BatchLoss:
    """Computes losses of batches that lie on the device.

    Attributes:
        vae: Gives the VAE; called only for batches without latents.
        autocast: Gives the context in which networks run.
        unchanged: Gives a context in which the model is as it was before training.
        seed: Of the run.
    """

    family: ModelFamily
    denoiser: nn.Module
    text: TextStage
    vae: Callable[[], nn.Module]
    loss: LossSettings
    autocast: Callable[[], AbstractContextManager[None]]
    unchanged: Callable[[], AbstractContextManager[None]]
    seed: int

    def __call__(self, batch: Batch) -> Tensor:
        """Mean loss of a batch. A scalar, float32."""
        plan = batch.plan
        # keys the draws inside modules (adapter dropout); recomputed blocks draw the same
        torch.manual_seed(stream_seed(self.seed, "forward", plan.epoch, plan.index))
        seeds = [stream_seed(self.seed, "noise", plan.epoch, sample) for sample in batch.sample_ids]
        latents = self._latents(batch)
        noise = send(normal_per_sample(seeds, latents.shape[1:]), latents.device)
        time_seeds = [stream_seed(seed, "timestep") for seed in seeds]
        objective = self.family.objective()
        draw = objective.draw(uniform_per_sample(time_seeds), normal_per_sample(time_seeds, ())).to(latents.device)
        place = uniform_per_sample([stream_seed(seeds[0], "position")], (3,))[0].tolist()
        conditioning = self._conditioning(batch)

        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            return self._predict(noisy_latents, timesteps, conditioning, place)

        losses = compute_loss(
            latents,
            noise,
            draw,
            predict,
            objective,
            loss=self.loss,
            loss_weights=batch.loss_weights,
            mask=batch.masks,
            preservation=self._preservation(batch, conditioning, place),
        )
        return losses.mean()

    def _conditioning(self, batch: Batch) -> Conditioning:
        with self.autocast():
            return self.family.join_text(self.text.for_batch(batch, self.seed), self.denoiser)

    def _predict(
        self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, place: Sequence[float]
    ) -> Tensor:
        """The model's output; `place` holds the draws of the window of positions."""
        top, left, chance = place
        with self.autocast():
            return self.family.predict(
                self.denoiser, noisy_latents, timesteps, conditioning, position_draw=(chance, top, left)
            )

    def _preservation(
        self, batch: Batch, conditioning: Conditioning, place: Sequence[float]
    ) -> OutputPreservation | None:
        """For the samples that ask for it, the unchanged model; its text encoders are the unchanged ones, too."""
        if batch.preserves_output is None or not bool(batch.preserves_output.any()):
            return None
        rows = send(batch.preserves_output.nonzero().flatten(), batch.loss_weights.device)

        @torch.no_grad()
        def predict(noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
            with self.unchanged():
                own = self._conditioning(batch) if self.text.trained else conditioning
                own = Conditioning(own.context[rows], own.pooled[rows])
                return self._predict(noisy_latents, timesteps, own, place)

        return OutputPreservation(rows, predict)

    def _latents(self, batch: Batch) -> Tensor:
        """Cached, or encoded now. Scaled, float32. Shape [B, C, h, w]."""
        if batch.latents is not None:
            return batch.latents.float()
        assert batch.images is not None
        return encode_pictures(self.family, self.vae(), batch.images, batch.posterior_seeds).float()
