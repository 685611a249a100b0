"""The loss of one batch, as a pure function of weights (inside `predict`), batch and draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from library.diffusion.loss import LossSettings, elementwise_loss, huber_thresholds, reduce_per_sample
from library.diffusion.objective import Draw, Objective


@dataclass(frozen=True)
class OutputPreservation:
    """Samples whose target is what the model predicts without the network, so that it keeps drawing them as it does.

    Attributes:
        rows: Numbers of these samples in the batch; at least one. Shape [R], int64.
        predict: (noisy_latents [R, C, h, w], timesteps [R]) -> the unchanged model's output, without gradient.
    """

    rows: Tensor
    predict: Callable[[Tensor, Tensor], Tensor]


def compute_loss(
    latents: Tensor,
    noise: Tensor,
    draw: Draw,
    predict: Callable[[Tensor, Tensor], Tensor],
    objective: Objective,
    *,
    loss: LossSettings,
    added_noise: Tensor | None = None,
    loss_weights: Tensor | None = None,
    mask: Tensor | None = None,
    preservation: OutputPreservation | None = None,
) -> Tensor:
    """Corrupt the latents, predict, compare. In float32; none of the inputs is written to.

    Args:
        latents: Scaled. Shape [B, C, h, w].
        noise: What the model has to find in the noisy latents. Shape [B, C, h, w].
        draw: Timesteps and noise levels of the samples.
        predict: (noisy_latents [B, C, h, w], timesteps [B]) -> the model's output [B, C, h, w]. It holds the
            conditioning; gradients flow through it.
        objective: How to corrupt, and what to compare with what.
        loss: How to compare.
        added_noise: What goes into the latents, where that is not `noise`. Shape [B, C, h, w].
        loss_weights: Factor on each sample's loss. Shape [B].
        mask: 0..1, where to learn. Shape [B, 1, h, w].
        preservation: Samples that are compared with the unchanged model instead of with the picture.

    Returns:
        Loss of each sample. Shape [B], float32.
    """
    noisy_latents = objective.corrupt(latents, noise if added_noise is None else added_noise, draw)
    prediction = predict(noisy_latents, draw.timesteps)
    terms = objective.terms(prediction, latents, noise, noisy_latents, draw)
    target = terms.target
    if preservation is not None:
        rows = preservation.rows
        unchanged = preservation.predict(noisy_latents[rows], draw.timesteps[rows])
        own = Draw(draw.timesteps[rows], draw.sigmas[rows])
        kept = objective.terms(unchanged, latents[rows], noise[rows], noisy_latents[rows], own)
        target = target.index_copy(0, rows, kept.estimate)
    thresholds = huber_thresholds(loss, draw.timesteps, objective.snr(draw))
    elements = elementwise_loss(terms.estimate, target, loss.loss_type, thresholds)
    losses = reduce_per_sample(elements, terms.weight, mask)
    return losses if loss_weights is None else losses * loss_weights.float()
