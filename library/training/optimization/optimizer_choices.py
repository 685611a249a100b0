"""What an optimizer was made with, so that a changed option can be told from a state that has moved on.

Groups and attributes hold both: `weight_decay` is chosen, the step size `d` is found. What was chosen is noted when
the optimizer is made, and kept in its state. Where a run goes on with another choice, that choice counts; everything
else is as it was saved.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from library.errors import CheckpointError

_PLAIN = (bool, int, float, str, type(None))
_SHAPING = ("amsgrad", "ams_bound", "centered", "momentum", "beta1")  # on or off decides what a state consists of
_NOTE = "choices"  # attribute of the optimizer


def note_choices(optimizer: Optimizer) -> None:
    """Note arguments of the constructor as they are in groups and attributes. Call it before a schedule is made."""
    names = _argument_names(type(optimizer))
    groups = [_note(names, {**group, "params": None}) for group in optimizer.param_groups]
    own = {name: value for name, value in vars(optimizer).items() if name.lstrip("_") in names}
    setattr(optimizer, _NOTE, {"groups": groups, "attributes": _note(names, own), "schedule": []})


def note_schedule(optimizer: Optimizer) -> None:
    """Note what a schedule that was just made has added to the groups."""
    noted = choices(optimizer)
    pairs = zip(optimizer.param_groups, noted["groups"], strict=True)
    noted["schedule"] = [{key: group[key] for key in group.keys() - known} for group, known in pairs]


def choices(optimizer: Optimizer) -> dict[str, Any]:
    """What was noted; of an optimizer that was made elsewhere, nothing is known."""
    nothing = [dict.fromkeys(group) for group in optimizer.param_groups]
    noted: dict[str, Any] = getattr(optimizer, _NOTE, {"groups": nothing, "attributes": {}, "schedule": []})
    return noted


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that are others now, of one group or of the attributes."""
    return {key: value for key, value in now.items() if key in before and before[key] != value}


def check_form(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a choice by which a state would have other parts than the one that was saved.

    Raises:
        CheckpointError: With its name.
    """
    for key, value in changed(before, now).items():
        if key in _SHAPING and bool(before[key]) != bool(value):
            raise CheckpointError(
                f"--optimizer_args {key}={value!r}: the optimizer of the saved state has {before[key]!r}, with which "
                f"it keeps other numbers. Put it back, or begin a new run."
            )


def _note(names: set[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """All keys; the values of those alone that are arguments and plain."""
    return {key: v if key.lstrip("_") in names and _is_plain(v) else None for key, v in values.items()}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(_is_plain(item) for item in value)
    return type(value) in _PLAIN


def _argument_names(optimizer_class: type[Optimizer]) -> set[str]:
    """Of the constructors of the class and its bases: some hand their arguments on."""
    made = [base.__init__ for base in optimizer_class.__mro__ if base not in (object, Optimizer)]  # type: ignore[misc]
    names = {name for function in made for name in inspect.signature(function).parameters}
    return names - {"self", "params", "args", "kwargs"}
