"""Element-wise losses and how they become one number per sample.

huber is quadratic near 0 and linear far away, so that outliers pull less; its threshold may fall towards
noise. Source: Khrapov et al. 2024, arXiv:2403.16728 (scheduled pseudo-Huber).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from library.diffusion.flow import NUM_TIMESTEPS
from library.errors import OptionError

LOSS_TYPES = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")


@dataclass(frozen=True)
class LossSettings:
    """How estimate and target are compared.

    Attributes:
        loss_type: One of LOSS_TYPES.
        huber_schedule: How the threshold depends on the noise; one of HUBER_SCHEDULES for huber and smooth_l1.
        huber_c: The threshold (`constant`), or what it falls to in pure noise (`exponential`, `snr`). Above 0.
        huber_scale: Factor on the threshold of `constant` and `exponential`. Above 0.

    Raises:
        OptionError: A setting is out of its range; names the option.
    """

    loss_type: str = "l2"
    huber_schedule: str = "constant"
    huber_c: float = 0.1
    huber_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise OptionError(f"--loss_type {self.loss_type}: not known. Use one of {', '.join(LOSS_TYPES)}.")
        if not self.has_threshold:
            return
        if self.huber_schedule not in HUBER_SCHEDULES:
            known = ", ".join(HUBER_SCHEDULES)
            raise OptionError(f"--huber_schedule {self.huber_schedule}: not known. Use one of {known}.")
        for flag, value in (("--huber_c", self.huber_c), ("--huber_scale", self.huber_scale)):
            if not value > 0:
                raise OptionError(f"{flag} must be above 0, got {value}.")

    @property
    def has_threshold(self) -> bool:
        """Whether the loss changes its form at a threshold."""
        return self.loss_type in ("huber", "smooth_l1")


def huber_thresholds(settings: LossSettings, timesteps: Tensor, snr: Tensor | None = None) -> Tensor:
    """Where huber and smooth_l1 turn from quadratic to linear.

    With c = huber_c: `constant` c, `exponential` c^(t / 1000), both times huber_scale; `snr`
    (1 - c) / (1 + sqrt(1 / SNR))^2 + c. The last has no factor: it starts at 1 in clean latents whatever c is.
    In a rectified flow SNR = ((1 - sigma) / sigma)^2, so it is (1 - c) (1 - sigma)^2 + c.

    Args:
        settings: Type and schedule.
        timesteps: 0..1000. Shape [B].
        snr: Signal-to-noise ratios, 0 to infinity, from the objective; only `snr` reads them. Shape [B].

    Returns:
        Shape [B], float32.

    Raises:
        ValueError: The schedule is `snr`, and there are no ratios.
    """
    timesteps = timesteps.float()
    if not settings.has_threshold or settings.huber_schedule == "constant":
        return torch.full_like(timesteps, settings.huber_c * settings.huber_scale)
    if settings.huber_schedule == "exponential":
        return settings.huber_c ** (timesteps / NUM_TIMESTEPS) * settings.huber_scale
    if snr is None:
        raise ValueError("huber_schedule snr needs the signal-to-noise ratios")
    signal_share = 1 / (1 + torch.sqrt(1 / snr.float())) ** 2
    return (1 - settings.huber_c) * signal_share + settings.huber_c


def elementwise_loss(estimate: Tensor, target: Tensor, loss_type: str, thresholds: Tensor) -> Tensor:
    """Loss of each element, in float32.

    With d the difference and c the threshold: l2 d^2, l1 |d|, huber 2c(sqrt(d^2 + c^2) - c),
    smooth_l1 2(sqrt(d^2 + c^2) - c).

    Args:
        estimate: Shape [B, ...].
        target: Shape [B, ...].
        loss_type: One of LOSS_TYPES.
        thresholds: Only read by huber and smooth_l1. Shape [B].

    Returns:
        Shape [B, ...].
    """
    difference = estimate.float() - target.float()
    if loss_type == "l1":
        return difference.abs()
    square = difference**2
    if loss_type == "l2":
        return square
    c = _over_elements(thresholds, square)
    # sqrt(d^2 + c^2) - c, written so that small differences keep their digits
    bow = square / (torch.sqrt(square + c**2) + c)
    return 2 * c * bow if loss_type == "huber" else 2 * bow


def reduce_per_sample(losses: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weight, mask, and average over everything but the batch.

    The average is over all elements, masked ones too: a sample with a small unmasked area counts less.

    Args:
        losses: Shape [B, C, h, w].
        weight: Shape [B].
        mask: 0..1, broadcast over channels. Shape [B, 1, h, w].

    Returns:
        Shape [B], float32.
    """
    losses = losses * _over_elements(weight, losses)
    if mask is not None:
        losses = losses * mask.float()
    return losses.flatten(1).mean(1)


def _over_elements(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
