"""The numbers of a step or an epoch under the names that trackers show them by.

loss/current, loss/average, loss/epoch_average, loss/validation/..., lr/..., norm/..., max_norm/...: as users know them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from library.training.watching.loss_records import TimestepBin


def step_scalars(
    *,
    loss: float | None = None,
    average: float | None = None,
    rates: Mapping[str, float] | None = None,
    effective_rates: Mapping[str, float] | None = None,
    norms: Mapping[str, float | None] | None = None,
    max_norm: Mapping[str, float | None] | None = None,
) -> dict[str, float]:
    """What is told after an optimizer step. What is not known, or no finite number, is left out.

    Args:
        loss: Of the step.
        average: Mean loss of the last steps.
        rates: Learning rates by part, for instance {"textencoder": 1e-4}.
        effective_rates: Rates of optimizers that find their own: their estimate d times the learning rate.
        norms: By name, for instance {"avg_grad_norm": 0.3}.
        max_norm: What --scale_weight_norms did: {"keys_scaled": 3, "max_key_norm": 0.9}.
    """
    return _finite(
        {
            "loss/current": loss,
            "loss/average": average,
            **_below("lr", rates),
            **_below("lr/d*lr", effective_rates),
            **_below("norm", norms),
            **_below("max_norm", max_norm),
        }
    )


def epoch_scalars(average: float | None, bins: Iterable[TimestepBin] = ()) -> dict[str, float]:
    """What is told after an epoch: its mean loss, and its losses by timestep."""
    by_timestep = {f"loss/timestep/{item.start:03d}-{item.end:03d}": item.last_mean for item in bins}
    return _finite({"loss/epoch_average": average, **by_timestep})


def validation_scalars(average: float | None, training: float | None, *, is_epoch_end: bool) -> dict[str, float]:
    """What is told after a validation: its mean loss, and by how much that is above the mean loss of training."""
    prefix = f"loss/validation/{'epoch' if is_epoch_end else 'step'}"
    divergence = average - training if average is not None and training is not None else None
    return _finite({f"{prefix}_average": average, f"{prefix}_divergence": divergence})


def _below(prefix: str, values: Mapping[str, float | None] | Mapping[str, float] | None) -> dict[str, float | None]:
    return {f"{prefix}/{name}": value for name, value in (values or {}).items()}


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
