"""Putting a learning-rate schedule on an optimizer, and refusing one that cannot work.

Steps are optimizer steps, for any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.errors import OptionError
from library.log import get_logger
from library.training.optimization.schedule_reading import (
    ADAFACTOR,
    PLATEAU,
    ScheduleOptions,
    check_name,
    check_warmup,
    idle_options,
    read_arguments,
    read_schedule,
    whole_steps,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "check_schedule",
    "has_same_start",
    "is_adafactor_schedule",
    "make_schedule",
    "read_schedule",
    "whole_steps",
]

logger = get_logger(__name__)


def check_schedule(
    name: str,
    warmup: int | float = 0,
    scheduler_args: Sequence[str] | None = None,
    *,
    options: ScheduleOptions | None = None,
) -> None:
    """Refuse a schedule that cannot work, before anything is loaded.

    Raises:
        OptionError: Unknown name or class; values that it needs and lacks, or cannot have.
    """
    if options is not None and options.lr_scheduler_type:
        _check_class(options.lr_scheduler_type, warmup, scheduler_args)
        return
    if is_adafactor_schedule(name):
        return
    check_name(name)
    check_warmup(name, warmup)
    if name == PLATEAU:
        from library.training.optimization.schedule_classes import check_plateau

        check_plateau(scheduler_args)
        return
    rate = 1.0 if options is None else options.learning_rate
    read_arguments(name, scheduler_args, rate)
    if options is not None:
        read_schedule(name, num_steps=1, warmup=warmup, options=options, base_rate=rate)


def make_schedule(
    optimizer: Optimizer,
    name: str,
    *,
    num_steps: int,
    warmup: int | float = 0,
    options: ScheduleOptions | None = None,
) -> LRScheduler:
    """Put a schedule on an optimizer. Call `step()` once after each optimizer step, in every process.

    Args:
        optimizer: Its groups' rates at this time are the base rates.
        name: As users write it. Where the optimizer sets its rate itself, the schedule only reports it; a
            schedule-free optimizer gets a constant one.
        num_steps: Optimizer steps of the whole run.
        warmup: Steps, or a share below 1.
        options: The further `--lr_*` options; None for their defaults.

    Raises:
        OptionError: As `check_schedule`.
    """
    from library.training.optimization.optimizer_choices import note_schedule
    from library.training.optimization.schedule_state import note_start

    schedule = _make(optimizer, name, num_steps, warmup, options)
    note_schedule(optimizer)
    note_start(schedule)
    return schedule


def _make(
    optimizer: Optimizer, name: str, num_steps: int, warmup: int | float, options: ScheduleOptions | None
) -> LRScheduler:
    from library.training.optimization.optimizer_modes import is_schedule_free

    class_name = options.lr_scheduler_type if options is not None else ""
    if optimizer.defaults.get("relative_step"):
        return _reported_rate(optimizer, class_name or name, warmup)
    if is_schedule_free(optimizer):
        _warn_schedule_free(class_name or name, warmup)
        return _factor_schedule(optimizer, "constant", num_steps, 0, None)
    if options is not None and class_name:
        return _class_schedule(optimizer, name, options)
    if is_adafactor_schedule(name):
        raise OptionError("--lr_scheduler adafactor needs --optimizer_type Adafactor with relative_step=True.")
    if options is not None:
        _warn_without_effect(f"--lr_scheduler {name}", idle_options(name, options))
    if name == PLATEAU:
        from library.training.optimization.schedule_classes import make_plateau

        return make_plateau(optimizer, options.lr_scheduler_args if options is not None else None)
    return _factor_schedule(optimizer, name, num_steps, warmup, options)


def has_same_start(options: ScheduleOptions, num_steps: int, *, before: int, now: int) -> bool:
    """Whether a schedule gives the first steps of a run the same rates for two lengths of the run.

    Args:
        options: The schedule; the length of a class's schedule is not known, so it never does.
        num_steps: How many are compared.
        before: Optimizer steps of the whole run.
        now: The other number.
    """
    name, warmup = options.lr_scheduler, options.lr_warmup_steps
    if options.lr_scheduler_type:
        return False
    if is_adafactor_schedule(name) or name == PLATEAU:
        return True
    rate = options.learning_rate
    old, new = (
        read_schedule(name, num_steps=length, warmup=warmup, options=options, base_rate=rate)
        for length in (before, now)
    )
    return all(old.factor(step) == new.factor(step) for step in range(num_steps))


def is_adafactor_schedule(name: str) -> bool:
    """Whether the name means "whatever Adafactor does itself" ("adafactor", "adafactor:<initial rate>")."""
    return name.partition(":")[0] == ADAFACTOR


def _factor_schedule(
    optimizer: Optimizer, name: str, num_steps: int, warmup: int | float, options: ScheduleOptions | None
) -> LRScheduler:
    from torch.optim.lr_scheduler import LambdaLR

    base_rate = float(optimizer.defaults["lr"])
    schedule = read_schedule(name, num_steps=num_steps, warmup=warmup, options=options, base_rate=base_rate)
    if schedule.warmup and schedule.warmup >= num_steps:
        logger.warning(
            "--lr_warmup_steps %s: the run has only %s, so the full rate is never reached.",
            warmup,
            "1 step" if num_steps == 1 else f"{num_steps} steps",
        )
    return LambdaLR(optimizer, lambda step: schedule.factor(step))


def _check_class(class_name: str, warmup: int | float, args: Sequence[str] | None) -> None:
    from library.training.optimization.schedule_classes import check_class_schedule

    if warmup:
        raise OptionError(
            f"--lr_scheduler_type {class_name} cannot have --lr_warmup_steps {warmup}: the class makes the whole "
            "course of the rate. Leave one of the two out."
        )
    check_class_schedule(class_name, args)


def _class_schedule(optimizer: Optimizer, name: str, options: ScheduleOptions) -> LRScheduler:
    from library.training.optimization.schedule_classes import make_class_schedule

    class_name = options.lr_scheduler_type
    idle = [f"--lr_scheduler {name}"] * (name != "constant") + idle_options("", options)
    _warn_without_effect(f"--lr_scheduler_type {class_name}", idle)
    return make_class_schedule(optimizer, class_name, options.lr_scheduler_args)


def _reported_rate(optimizer: Optimizer, name: str, warmup: int | float) -> LRScheduler:
    """A schedule that reports the rate which Adafactor with relative_step sets itself."""
    from library.training.optimization.schedule_classes import ReportedRates

    if not is_adafactor_schedule(name) and name != "constant":
        logger.warning("--lr_scheduler %s has no effect: Adafactor with relative_step sets the rate itself.", name)
    if warmup:
        logger.warning("--lr_warmup_steps has no effect: Adafactor with relative_step sets the rate itself.")
    initial = name.partition(":")[2]
    return ReportedRates(optimizer, float(initial or 0))


def _warn_schedule_free(name: str, warmup: int | float) -> None:
    given = [f"--lr_scheduler {name}"] * (name != "constant") + [f"--lr_warmup_steps {warmup}"] * bool(warmup)
    if given:
        logger.warning(
            "%s: no effect, a schedule-free optimizer averages the weights instead. "
            'Its warm-up is --optimizer_args "warmup_steps=100".',
            " and ".join(given),
        )


def _warn_without_effect(owner: str, idle: Sequence[str]) -> None:
    if idle:
        logger.warning("%s does not use %s.", owner, ", ".join(idle))
