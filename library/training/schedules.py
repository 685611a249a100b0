"""Learning-rate schedules: step -> factor on each group's base rate.

Steps are optimizer steps, for any number of processes. Functions are pure; `make_schedule` puts one on
an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol

from library.errors import OptionError
from library.log import get_logger
from library.training.optimizers import split_key_values

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

logger = get_logger(__name__)

_POLYNOMIAL_END = 1e-7  # the rate at which `polynomial` ends
_DEFAULT_TIMESCALE = 10_000
_LATER = ("reduce_lr_on_plateau", "cosine_warmup_with_min_lr")
_ADAFACTOR = "adafactor"


class ScheduleOptions(Protocol):
    """The options of `--lr_scheduler` beyond its name and its warm-up."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def lr_decay_steps(self) -> int | float: ...
    @property
    def lr_scheduler_num_cycles(self) -> int: ...
    @property
    def lr_scheduler_power(self) -> float: ...
    @property
    def lr_scheduler_timescale(self) -> int | None: ...
    @property
    def lr_scheduler_min_lr_ratio(self) -> float | None: ...
    @property
    def lr_scheduler_args(self) -> Sequence[str] | None: ...


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
        min_ratio: Lowest factor of `cosine_with_min_lr` (must be given) and `warmup_stable_decay`.
        base_rate: Which `polynomial` needs, as it ends at a rate and not at a factor.
        rules: Of `piecewise_constant`: (factor, first step after it); the last has no end.
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

    def factor(self, step: int) -> float:
        """Factor on the base rate in the given step, counted from 0."""
        return _FACTORS[self.name](self, step)

    def progress(self, step: int) -> float:
        """How much of the time after the warm-up is over. 0..1."""
        return min(1.0, (step - self.warmup) / max(1, self.num_steps - self.warmup))


def _warmed(after: Callable[[Schedule, int], float]) -> Callable[[Schedule, int], float]:
    """A linear rise from 0, then `after`."""

    def factor(schedule: Schedule, step: int) -> float:
        return step / schedule.warmup if step < schedule.warmup else after(schedule, step)

    return factor


def _constant(schedule: Schedule, step: int) -> float:
    return 1.0


def _linear(schedule: Schedule, step: int) -> float:
    return 1.0 - schedule.progress(step)


def _cosine(schedule: Schedule, step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * schedule.progress(step)))


def _cosine_with_restarts(schedule: Schedule, step: int) -> float:
    progress = schedule.progress(step)
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (schedule.num_cycles * progress % 1.0)))


def _polynomial(schedule: Schedule, step: int) -> float:
    rate, left = schedule.base_rate, 1 - schedule.progress(step)
    return ((rate - _POLYNOMIAL_END) * left**schedule.power + _POLYNOMIAL_END) / rate


def _inverse_sqrt(schedule: Schedule, step: int) -> float:
    timescale = schedule.timescale or schedule.warmup or _DEFAULT_TIMESCALE
    return 1 / math.sqrt((step + timescale - schedule.warmup) / timescale)


def _cosine_with_min_lr(schedule: Schedule, step: int) -> float:
    lowest = schedule.min_ratio or 0.0
    wave = 0.5 * (1 + math.cos(math.pi * schedule.num_cycles * schedule.progress(step)))
    return lowest + (1 - lowest) * wave


def _warmup_stable_decay(schedule: Schedule, step: int) -> float:
    lowest, decay_from = schedule.min_ratio or 0.0, schedule.num_steps - schedule.decay
    if step < schedule.warmup:
        return lowest + (1 - lowest) * step / schedule.warmup
    if step < decay_from:
        return 1.0
    if step >= schedule.num_steps:
        return lowest
    progress = (step - decay_from) / max(1, schedule.decay)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * schedule.num_cycles * progress))


def _piecewise_constant(schedule: Schedule, step: int) -> float:
    return next(factor for factor, end in schedule.rules if end is None or step < end)


_FACTORS: dict[str, Callable[[Schedule, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _warmed(_constant),
    "linear": _warmed(_linear),
    "cosine": _warmed(_cosine),
    "cosine_with_restarts": _warmed(_cosine_with_restarts),
    "polynomial": _warmed(_polynomial),
    "inverse_sqrt": _warmed(_inverse_sqrt),
    "cosine_with_min_lr": _warmed(_cosine_with_min_lr),
    "warmup_stable_decay": _warmup_stable_decay,
    "piecewise_constant": _piecewise_constant,
}
_WITHOUT_WARMUP = ("constant", "piecewise_constant")
# Option, the value that means "not given", and the schedules that read it.
_READ_BY: tuple[tuple[str, int | float | None, tuple[str, ...]], ...] = (
    ("lr_decay_steps", 0, ("warmup_stable_decay",)),
    ("lr_scheduler_num_cycles", 1, ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay")),
    ("lr_scheduler_power", 1, ("polynomial",)),
    ("lr_scheduler_timescale", None, ("inverse_sqrt",)),
    ("lr_scheduler_min_lr_ratio", None, ("cosine_with_min_lr", "warmup_stable_decay")),
)


def whole_steps(amount: int | float, num_steps: int, flag: str) -> int:
    """A number of steps, or a share of all steps where it is below 1.

    Raises:
        OptionError: A fraction above 1, or a negative number.
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise OptionError(f"{flag} {amount}: give a whole number of steps, or a share of all steps below 1.")
    return int(amount) if amount >= 1 else int(amount * num_steps)


def check_schedule(
    name: str,
    warmup: int | float = 0,
    scheduler_args: Sequence[str] | None = None,
    *,
    options: ScheduleOptions | None = None,
) -> None:
    """Refuse a schedule that cannot work, before anything is loaded.

    Raises:
        OptionError: Unknown or not available name; values that it needs and lacks, or cannot have.
    """
    if is_adafactor_schedule(name):
        return
    _check_name(name)
    _check_warmup(name, warmup)
    _read_rules(name, scheduler_args)
    if options is not None:
        read_schedule(name, num_steps=1, warmup=warmup, options=options, base_rate=options.learning_rate)


def read_schedule(
    name: str,
    *,
    num_steps: int,
    warmup: int | float = 0,
    options: ScheduleOptions | None = None,
    base_rate: float = 1.0,
) -> Schedule:
    """The schedule that the options ask for; without `options` everything but the warm-up is at its default.

    Raises:
        OptionError: As `check_schedule`.
    """
    _check_name(name)
    _check_warmup(name, warmup)
    schedule = Schedule(
        name=name, num_steps=num_steps, warmup=whole_steps(warmup, num_steps, "--lr_warmup_steps"), base_rate=base_rate
    )
    if options is not None:
        schedule = _with_options(schedule, options)
    if name == "cosine_with_min_lr" and schedule.min_ratio is None:
        raise OptionError("--lr_scheduler cosine_with_min_lr needs --lr_scheduler_min_lr_ratio, for instance 0.1.")
    if name == "polynomial" and base_rate <= _POLYNOMIAL_END:
        raise OptionError(
            f"--lr_scheduler polynomial ends at a rate of {_POLYNOMIAL_END}, so --learning_rate must be above it, "
            f"got {base_rate}."
        )
    return schedule


def make_schedule(
    optimizer: Optimizer,
    name: str,
    *,
    num_steps: int,
    warmup: int | float = 0,
    options: ScheduleOptions | None = None,
) -> LambdaLR:
    """Put a schedule on an optimizer. Call `step()` once after each optimizer step, in every process.

    Args:
        optimizer: Its groups' rates at this time are the base rates.
        name: As users write it. Where the optimizer sets its rate itself, the schedule only reports it.
        num_steps: Optimizer steps of the whole run.
        warmup: Steps, or a share below 1.
        options: The further `--lr_*` options; None for their defaults.

    Raises:
        OptionError: As `check_schedule`.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if optimizer.defaults.get("relative_step"):
        return _reported_rate(optimizer, name, warmup)
    if is_adafactor_schedule(name):
        raise OptionError("--lr_scheduler adafactor needs --optimizer_type Adafactor with relative_step=True.")
    base_rate = float(optimizer.defaults["lr"])
    schedule = read_schedule(name, num_steps=num_steps, warmup=warmup, options=options, base_rate=base_rate)
    if schedule.warmup >= num_steps:
        logger.warning(
            "--lr_warmup_steps %s: the run has only %d steps, so the full rate is never reached.", warmup, num_steps
        )
    if options is not None:
        _warn_without_effect(name, options)
    return LambdaLR(optimizer, lambda step: schedule.factor(step))


def is_adafactor_schedule(name: str) -> bool:
    """Whether the name means "whatever Adafactor does itself" ("adafactor", "adafactor:<initial rate>")."""
    return name.partition(":")[0] == _ADAFACTOR


def _reported_rate(optimizer: Optimizer, name: str, warmup: int | float) -> LambdaLR:
    """A schedule that reports the rate which Adafactor with relative_step sets itself."""
    from transformers.optimization import AdafactorSchedule

    if not is_adafactor_schedule(name) and name != "constant":
        logger.warning("--lr_scheduler %s has no effect: Adafactor with relative_step sets the rate itself.", name)
    if warmup:
        logger.warning("--lr_warmup_steps has no effect: Adafactor with relative_step sets the rate itself.")
    initial = name.partition(":")[2]
    schedule: LambdaLR = AdafactorSchedule(optimizer, float(initial or 0))
    return schedule


def _warn_without_effect(name: str, options: ScheduleOptions) -> None:
    idle = [f"--{key}" for key, unset, names in _READ_BY if getattr(options, key) != unset and name not in names]
    if idle:
        logger.warning("--lr_scheduler %s does not use %s.", name, ", ".join(idle))


def _check_name(name: str) -> None:
    if name in _FACTORS:
        return
    available = ", ".join(_FACTORS)
    if name in _LATER:
        raise OptionError(f"--lr_scheduler {name}: not available yet. Use one of {available}.")
    near = get_close_matches(name, [*_FACTORS, *_LATER, _ADAFACTOR], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise OptionError(f"--lr_scheduler {name}: unknown schedule.{hint} Available: {available}.")


def _check_warmup(name: str, warmup: int | float) -> None:
    if name in _WITHOUT_WARMUP and warmup:
        instead = "Use --lr_scheduler constant_with_warmup, or leave the warm-up out."
        if name != "constant":
            instead = "Leave the warm-up out."
        raise OptionError(f"--lr_scheduler {name} cannot have --lr_warmup_steps {warmup}. {instead}")
    whole_steps(warmup, 1, "--lr_warmup_steps")


def _with_options(schedule: Schedule, options: ScheduleOptions) -> Schedule:
    return Schedule(
        name=schedule.name,
        num_steps=schedule.num_steps,
        warmup=schedule.warmup,
        decay=whole_steps(options.lr_decay_steps, schedule.num_steps, "--lr_decay_steps"),
        num_cycles=options.lr_scheduler_num_cycles,
        power=options.lr_scheduler_power,
        timescale=options.lr_scheduler_timescale,
        min_ratio=options.lr_scheduler_min_lr_ratio,
        base_rate=schedule.base_rate,
        rules=_read_rules(schedule.name, options.lr_scheduler_args),
    )


def _read_rules(name: str, scheduler_args: Sequence[str] | None) -> tuple[tuple[float, int | None], ...]:
    """The rules "1:10,0.1:20,0.01" of `piecewise_constant`: factor 1 before step 10, 0.1 before step 20, then 0.01."""
    arguments: dict[str, Any] = dict(split_key_values(scheduler_args, "--lr_scheduler_args"))
    text = str(arguments.pop("step_rules", "")).strip("'\" ") if name == "piecewise_constant" else ""
    if arguments:
        raise OptionError(
            f"--lr_scheduler_args: {name} has no argument {', '.join(arguments)}. "
            "Only piecewise_constant takes one, step_rules."
        )
    if name != "piecewise_constant":
        return ()
    try:
        *bounded, last = text.split(",")
        pairs = [rule.split(":") for rule in bounded]
        rules = sorted(((float(factor), int(end)) for factor, end in pairs), key=lambda rule: rule[1])
        return (*rules, (float(last), None))
    except ValueError:
        raise OptionError(
            '--lr_scheduler piecewise_constant needs --lr_scheduler_args "step_rules=1:10,0.1:20,0.01" '
            f"(factor:until_step, the last without a step), got {text or 'none'!r}."
        ) from None
