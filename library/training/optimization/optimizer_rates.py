"""The learning rates that optimizers really use, for logs and progress bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from library.training.optimization.lean_optimizer import bare_optimizer


def learning_rates(optimizer: Optimizer, names: Sequence[str] = ()) -> dict[str, float]:
    """The rates of the last step, or before the first one, of the next.

    Nothing waits for the device, except for Adafactor with relative_step, whose rate follows the size of the weights.
    A size d that lies on a GPU is the last one that has arrived here; there is none at the first look.

    Args:
        optimizer: Also inside accelerate's wrapper.
        names: Of its groups in their order; missing ones are numbered, repeated ones get a number.

    Returns:
        {"lr/<group>": rate}; where the optimizer multiplies the rate by a size d of its own, also
        {"lr/d*lr/<group>": d * rate}.
    """
    bare = bare_optimizer(optimizer)
    rates: dict[str, float] = {}
    for group, name in zip(bare.param_groups, _unique_names(names, len(bare.param_groups)), strict=True):
        rate = _rate(bare, group)
        rates[f"lr/{name}"] = rate
        scale = _own_scale(bare, group.get("d"))
        if scale is not None:
            rates[f"lr/d*lr/{name}"] = scale * rate
    return rates


def has_own_scale(optimizer: Optimizer) -> bool:
    """Whether it finds a step size d itself, which the learning rate multiplies: D-Adaptation and Prodigy.

    Such an optimizer has one d, and so one rate, for all groups.
    """
    return _is_own_scale(optimizer.param_groups[0].get("d"))


def _own_scale(optimizer: Optimizer, value: Any) -> float | None:
    """The size of steps that the optimizer has found, as far as it is known here."""
    if not _is_own_scale(value):
        return None
    if isinstance(value, float) or not value.is_cuda:
        return float(value)
    return _ON_THE_WAY.setdefault(optimizer, LateNumber()).look(value)


class LateNumber:
    """A number of a GPU as it was a moment ago: each look takes in what has arrived, and sends for a newer one."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._host: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def look(self, number: Tensor) -> float | None:
        """The last value that has arrived; None at first. Never waits."""
        if self._host is not None and (self._event is None or self._event.query()):
            self._last, self._host = float(self._host), None
        if self._host is None:
            self._host = torch.empty((), dtype=number.dtype, pin_memory=number.is_cuda)
            self._host.copy_(number, non_blocking=True)
            self._event = torch.cuda.current_stream(number.device).record_event() if number.is_cuda else None
        return self._last


_ON_THE_WAY: WeakKeyDictionary[Optimizer, LateNumber] = WeakKeyDictionary()  # one d for all groups


def _is_own_scale(value: object) -> bool:
    return isinstance(value, float) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0)


def _rate(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    if group.get("relative_step"):
        return relative_rate(optimizer, group) or 0.0
    if group.get("k") and group.get("scheduled_lr"):  # schedule-free: with its own warm-up
        return float(group["scheduled_lr"])
    return float(group["lr"])


def relative_rate(optimizer: Optimizer, group: Mapping[str, Any]) -> float | None:
    """Adafactor's last rate on the first weight of a group that was stepped; None before the first step."""
    state = next(filter(None, map(optimizer.state.get, group["params"])), None)
    if state is None:
        return None
    step = state["step"]
    longest = 1e-6 * step if group["warmup_init"] else 1e-2
    size = max(group["eps"][1], float(state["RMS"])) if group["scale_parameter"] else 1.0
    return size * min(longest, 1 / math.sqrt(step))


def _unique_names(names: Sequence[str], count: int) -> list[str]:
    given = [names[index] if index < len(names) else f"group {index + 1}" for index in range(count)]
    unique: list[str] = []
    for name in given:
        candidate, number = name, 2
        while candidate in unique:
            candidate, number = f"{name} {number}", number + 1
        unique.append(candidate)
    return unique
