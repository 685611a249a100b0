"""The loss of one batch, as a pure function of weights (inside `predict`), batch and draw."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from library.diffusion.loss import LossSettings, elementwise_loss, huber_thresholds, reduce_per_sample
from library.diffusion.objective import Draw, Objective


def compute_loss(
    latents: Tensor,
    noise: Tensor,
    draw: Draw,
    predict: Callable[[Tensor, Tensor], Tensor],
    objective: Objective,
    *,
    loss: LossSettings,
    loss_weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Corrupt the latents, predict, compare. In float32; none of the inputs is written to.

    Args:
        latents: Scaled. Shape [B, C, h, w].
        noise: Standard normal. Shape [B, C, h, w].
        draw: Timesteps and noise levels of the samples.
        predict: (noisy_latents [B, C, h, w], timesteps [B]) -> the model's output [B, C, h, w]. It holds the
            conditioning; gradients flow through it.
        objective: How to corrupt, and what to compare with what.
        loss: How to compare.
        loss_weights: Factor on each sample's loss. Shape [B].
        mask: 0..1, where to learn. Shape [B, 1, h, w].

    Returns:
        Loss of each sample. Shape [B], float32.
    """
    noisy_latents = objective.corrupt(latents, noise, draw)
    prediction = predict(noisy_latents, draw.timesteps)
    terms = objective.terms(prediction, latents, noise, noisy_latents, draw)
    thresholds = huber_thresholds(loss, draw.timesteps)
    elements = elementwise_loss(terms.estimate, terms.target, loss.loss_type, thresholds)
    losses = reduce_per_sample(elements, terms.weight, mask)
    return losses if loss_weights is None else losses * loss_weights.float()
