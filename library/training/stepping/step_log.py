"""What an optimizer step came to, read from the device one step late, so that a step never waits for its own end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Sample(NamedTuple):
    """A trained sample: the picture's place among the records, its name, and the timestep that was drawn."""

    record: int
    name: str
    timestep: float


@dataclass(frozen=True)
class StepReport:
    """One optimizer step.

    Attributes:
        step: Its number, counted from 1.
        loss: Mean over the samples of all processes; NaN where the step was skipped.
        grad_norm: Of all gradients together, before clipping.
        is_skipped: The loss or a gradient was not finite, so nothing was changed.
        is_stop_asked: A process has been asked to stop.
        has_failed: A process cannot go on.
        samples: What this process trained.
        losses: Of each of these samples.
        rates: Learning rates that were used, {"lr/<part>": rate}.
    """

    step: int
    loss: float
    grad_norm: float
    is_skipped: bool
    is_stop_asked: bool
    has_failed: bool
    samples: tuple[Sample, ...]
    losses: tuple[float, ...]
    rates: Mapping[str, float]

    @property
    def broken(self) -> tuple[Sample, ...]:
        """The samples of this process whose own loss is not finite."""
        own = zip(self.samples, self.losses, strict=True)
        return tuple(sample for sample, loss in own if not math.isfinite(loss))


class StepLog:
    """Reports of all steps, in order.

    Attributes:
        losses: Mean loss of every step that has been read; NaN where it was skipped.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses = list(losses)
        self._pending: tuple[int, tuple[Sample, ...], Mapping[str, float], Tensor, Any] | None = None

    def push(
        self, step: int, samples: Sequence[Sample], values: Tensor, rates: Mapping[str, float] = MappingProxyType({})
    ) -> StepReport | None:
        """Take the numbers of a step that may still be computed; returns the report of the step before.

        Args:
            step: Counted from 1.
            samples: What this process trained.
            values: Loss, norm, whether the step was skipped, whether a stop is asked for, whether a process has
                failed; then the loss of each sample. Shape [5 + samples], float32.
            rates: Learning rates that were used.
        """
        report = self.flush()
        if values.device.type != "cuda":
            self._pending = step, tuple(samples), rates, values, None
            return report
        import torch

        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = step, tuple(samples), rates, host, copied
        return report

    def flush(self) -> StepReport | None:
        """Wait for the step that was pushed last; None if it has been read."""
        if self._pending is None:
            return None
        step, samples, rates, values, copied = self._pending
        self._pending = None
        if copied is not None:
            copied.synchronize()
        loss, norm, skipped, stop, failed, *losses = values.tolist()
        report = StepReport(
            step=step,
            loss=math.nan if skipped else loss,
            grad_norm=norm,
            is_skipped=bool(skipped),
            is_stop_asked=bool(stop),
            has_failed=bool(failed),
            samples=samples,
            losses=tuple(losses),
            rates=rates,
        )
        self.losses.append(report.loss)
        return report

    def discard(self) -> None:
        """Forget the step that was pushed last: the run goes back behind it."""
        self._pending = None

    def mean_of_last(self, num_steps: int) -> float | None:
        """Mean over the last steps that are known and were not skipped; None where there is none."""
        recent = [loss for loss in self.losses[-num_steps:] if math.isfinite(loss)]
        return sum(recent) / len(recent) if recent else None
