"""Schedules that are classes: any of torch.optim.lr_scheduler, a dotted name, and the one that follows the loss."""

from __future__ import annotations

import importlib
import inspect
import io
import pickle
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from library.errors import OptionError
from library.training.optimization.optimizer_arguments import check_names, one_line, parse_key_values
from library.training.optimization.optimizer_rates import relative_rate
from library.training.optimization.schedule_reading import ARGS_FLAG

_FAULTS = (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)


class PlateauSchedule(ReduceLROnPlateau):
    """Lowers the rate when the mean loss of an epoch has stopped falling; `end_epoch` tells it the loss."""

    def step(self, metrics: Any = None, epoch: Any = None) -> None:  # type: ignore[override]
        """Once after each optimizer step without a loss, which changes nothing; once after each epoch with it."""
        if metrics is not None:
            super().step(metrics)


class ReportedRates(LRScheduler):
    """Tells the rates that Adafactor with relative_step sets itself; before the first step of a group a given one."""

    def __init__(self, optimizer: Optimizer, initial: float) -> None:
        self.initial = initial
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """One for each group, whether or not it had a gradient this time."""
        found = [relative_rate(self.optimizer, group) for group in self.optimizer.param_groups]
        return [self.initial if rate is None else rate for rate in found]


def end_epoch(schedule: LRScheduler, loss: float) -> None:
    """Tell a schedule that follows the loss how an epoch went; nothing happens with the others.

    Args:
        schedule: Of the run.
        loss: Mean over the epoch and over all processes, so that all of them go on with the same rate.
    """
    if isinstance(schedule, PlateauSchedule):
        schedule.step(loss)


def make_plateau(optimizer: Optimizer, args: Sequence[str] | None) -> LRScheduler:
    """The schedule `reduce_lr_on_plateau`, with the arguments of torch's class."""
    return _make("--lr_scheduler reduce_lr_on_plateau", PlateauSchedule, optimizer, args)


def make_class_schedule(optimizer: Optimizer, name: str, args: Sequence[str] | None) -> LRScheduler:
    """The schedule of `--lr_scheduler_type`.

    Args:
        optimizer: Its groups' rates at this time are the base rates.
        name: A class of torch.optim.lr_scheduler in any letter case, or "package.module.Class".
        args: `key=value` items, literals of Python.

    Raises:
        OptionError: There is no such class, or it does not take the arguments.
    """
    return _make(f"--lr_scheduler_type {name}", _find_class(name), optimizer, args)


def check_class_schedule(name: str, args: Sequence[str] | None) -> None:
    """Build it over a small optimizer and step it, before anything is loaded.

    Raises:
        OptionError: It cannot be made or stepped, or a state cannot keep it.
    """
    schedule = make_class_schedule(_small_optimizer(), name, args)
    try:
        schedule.optimizer.step()
        schedule.step()
    except _FAULTS as fault:
        raise OptionError(f"--lr_scheduler_type {name} cannot take a step ({one_line(fault)}). Use another.") from fault
    try:
        written = io.BytesIO()
        torch.save(schedule.state_dict(), written)
        written.seek(0)
        schedule.load_state_dict(torch.load(written, weights_only=True))
    except (*_FAULTS, pickle.PickleError) as fault:
        raise OptionError(
            f"--lr_scheduler_type {name}: its state cannot be saved and read again ({one_line(fault)}), so the run "
            "could not be continued. Use another."
        ) from fault


def check_plateau(args: Sequence[str] | None) -> None:
    """Build it over a small optimizer."""
    make_plateau(_small_optimizer(), args)


def _small_optimizer() -> Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3, momentum=0.9)


def _make(owner: str, made: type[LRScheduler], optimizer: Optimizer, args: Sequence[str] | None) -> LRScheduler:
    arguments = parse_key_values(args, ARGS_FLAG)
    check_names(ARGS_FLAG, made.__name__, made, arguments, reserved={"optimizer": "it is the run's"}, takes_more=True)
    try:
        return made(optimizer, **arguments)
    except _FAULTS as fault:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise OptionError(f"{owner} cannot be made with {given} ({one_line(fault)}). Check {ARGS_FLAG}.") from fault


def _find_class(name: str) -> type[LRScheduler]:
    if "." in name:
        found = _imported(name)
    else:
        classes = {known.lower(): value for known, value in vars(lr_scheduler).items() if _is_schedule(value)}
        found = classes.get(name.lower())
        if found is None:
            near = get_close_matches(name.lower(), classes, n=1)
            hint = f" Did you mean {classes[near[0]].__name__}?" if near else ""
            raise OptionError(
                f"--lr_scheduler_type {name}: torch.optim.lr_scheduler has no such class.{hint} "
                "A class of another module is given as module.Class."
            )
    if found is ReduceLROnPlateau:
        return PlateauSchedule
    if not _is_schedule(found):
        raise OptionError(f"--lr_scheduler_type {name} is not a schedule of torch. Check the name.")
    schedule_class: type[LRScheduler] = found
    return schedule_class


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"--lr_scheduler_type {path} cannot be imported ({one_line(error)}). Check it, or install its package."
        ) from error


def _is_schedule(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, LRScheduler) and value is not LRScheduler
