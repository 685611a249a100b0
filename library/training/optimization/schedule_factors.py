"""Learning-rate schedules as pure functions: step -> factor on the base rate.

Steps are optimizer steps, for any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

POLYNOMIAL_END = 1e-7  # the rate at which `polynomial` ends
_DEFAULT_TIMESCALE = 10_000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule with all its numbers. Steps are whole numbers.

    Attributes:
        name: Key of the table below.
        num_steps: Of the whole run.
        warmup: Steps of rising rate.
        decay: Steps at the end of `warmup_stable_decay`.
        num_cycles: Of the cosine forms.
        power: Of `polynomial`.
        timescale: Of `inverse_sqrt`; None for `warmup`, or 10000 without one.
        min_ratio: Lowest factor of the `..._min_lr` forms (must be given) and of `warmup_stable_decay`.
        base_rate: Which `polynomial` needs, as it ends at a rate and not at a factor.
        rules: Of `piecewise_constant`: (factor, first step after it); the last has no end.
        warmup_type: Shape of the rise of `warmup_stable_decay`, a key of `SHAPES`.
        decay_type: Shape of its fall.
        warmup_start: First factor of `cosine_warmup_with_min_lr`; None for one step of the rise.
    """

    name: str
    num_steps: int
    warmup: int = 0
    decay: int = 0
    num_cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_ratio: float | None = None
    base_rate: float = 1.0
    rules: tuple[tuple[float, int | None], ...] = ()
    warmup_type: str = "linear"
    decay_type: str = "cosine"
    warmup_start: float | None = None

    def factor(self, step: int) -> float:
        """Factor on the base rate in the given step, counted from 0."""
        return FACTORS[self.name](self, step)

    def progress(self, step: int) -> float:
        """How much of the time after the warm-up is over. 0..1."""
        return min(1.0, (step - self.warmup) / max(1, self.num_steps - self.warmup))

    def above_lowest(self, share: float) -> float:
        """The factor at a share of the way from the lowest to the full one."""
        lowest = self.min_ratio or 0.0
        return lowest + (1 - lowest) * share


def _warmed(after: Callable[[Schedule, int], float]) -> Callable[[Schedule, int], float]:
    """A linear rise from 0, then `after`."""

    def factor(schedule: Schedule, step: int) -> float:
        return step / schedule.warmup if step < schedule.warmup else after(schedule, step)

    return factor


def _constant(schedule: Schedule, step: int) -> float:
    return 1.0


def _linear(schedule: Schedule, step: int) -> float:
    return 1.0 - schedule.progress(step)


def _wave(turns: float) -> float:
    """From 1 down to 0 over half a turn of the cosine."""
    return 0.5 * (1 + math.cos(math.pi * turns))


def _cosine(schedule: Schedule, step: int) -> float:
    return _wave(schedule.progress(step))


def _cosine_with_restarts(schedule: Schedule, step: int) -> float:
    progress = schedule.progress(step)
    return 0.0 if progress >= 1 else _wave(schedule.num_cycles * progress % 1.0)


def _polynomial(schedule: Schedule, step: int) -> float:
    rate, left = schedule.base_rate, 1 - schedule.progress(step)
    return ((rate - POLYNOMIAL_END) * left**schedule.power + POLYNOMIAL_END) / rate


def _inverse_sqrt(schedule: Schedule, step: int) -> float:
    timescale = schedule.timescale or schedule.warmup or _DEFAULT_TIMESCALE
    return 1 / math.sqrt((step + timescale - schedule.warmup) / timescale)


def _cosine_with_min_lr(schedule: Schedule, step: int) -> float:
    return schedule.above_lowest(_wave(schedule.num_cycles * schedule.progress(step)))


def _cosine_warmup_with_min_lr(schedule: Schedule, step: int) -> float:
    """The rise reaches the full rate in its last step, and the wave is one step ahead."""
    if step < schedule.warmup:
        if schedule.warmup_start is None:
            return (step + 1) / schedule.warmup
        return schedule.warmup_start + (1 - schedule.warmup_start) * step / max(1, schedule.warmup - 1)
    return schedule.above_lowest(_wave(schedule.num_cycles * schedule.progress(step + 1)))


SHAPES: dict[str, Callable[[float, int], float]] = {  # how far down at a share of the way; the number of half turns
    "linear": lambda share, turns: 1 - share,
    "cosine": lambda share, turns: _wave(turns * share),
    "1-sqrt": lambda share, turns: 1 - math.sqrt(share),
}


def _warmup_stable_decay(schedule: Schedule, step: int) -> float:
    decay_from = schedule.num_steps - schedule.decay
    if step < schedule.warmup:
        return schedule.above_lowest(SHAPES[schedule.warmup_type](1 - step / schedule.warmup, 1))
    if step < decay_from:
        return 1.0
    if step >= schedule.num_steps:
        return schedule.above_lowest(0.0)
    progress = (step - decay_from) / max(1, schedule.decay)
    return schedule.above_lowest(SHAPES[schedule.decay_type](progress, schedule.num_cycles))


def _piecewise_constant(schedule: Schedule, step: int) -> float:
    return next(factor for factor, end in schedule.rules if end is None or step < end)


FACTORS: dict[str, Callable[[Schedule, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _warmed(_constant),
    "linear": _warmed(_linear),
    "cosine": _warmed(_cosine),
    "cosine_with_restarts": _warmed(_cosine_with_restarts),
    "polynomial": _warmed(_polynomial),
    "inverse_sqrt": _warmed(_inverse_sqrt),
    "cosine_with_min_lr": _warmed(_cosine_with_min_lr),
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
    "piecewise_constant": _piecewise_constant,
}
