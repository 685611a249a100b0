"""The state of a learning-rate schedule. Where nothing has changed, going on from it changes no bit.

Where another rate, schedule or length of the run was chosen, what counts of the state is its place: how many steps are
done and, for a schedule that follows the loss, how far it has lowered the rate.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from library.training.optimization.schedule_classes import PlateauSchedule

_PLAIN = (bool, int, float, str, type(None))
_START = "start"  # attribute of the schedule
_PLATEAU_PLACE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def note_start(schedule: LRScheduler) -> None:
    """Note how a schedule begins, which tells what was chosen. Call it when the schedule was made."""
    rates = [group["lr"] for group in schedule.optimizer.param_groups]
    setattr(schedule, _START, {"rates": rates, "options": _plain(_now(schedule))})


def schedule_state(schedule: LRScheduler) -> dict[str, Any]:
    """All that it takes to go on; `torch.load(weights_only=True)` reads it from a file."""
    return {"class": _class_name(schedule), _START: getattr(schedule, _START), "now": _now(schedule)}


def load_schedule_state(schedule: LRScheduler, state: Mapping[str, Any], *, num_steps: int) -> None:
    """Put a schedule, and the learning rates of its optimizer, to where a saved one was.

    Args:
        schedule: From `make_schedule`. The state of its optimizer was put back already.
        state: From `schedule_state`.
        num_steps: Optimizer steps that were done.
    """
    is_same_class = state["class"] == _class_name(schedule)
    if type(schedule) is LambdaLR:
        _set_place(schedule, num_steps)
    elif is_same_class and state[_START] == getattr(schedule, _START):
        schedule.load_state_dict(dict(state["now"]))
        _set_rates(schedule, schedule.get_last_lr())
    elif isinstance(schedule, PlateauSchedule):
        _set_plateau(schedule, state if is_same_class else schedule_state(schedule))
    else:
        _repeat(schedule, num_steps)


def advance(schedule: LRScheduler, num_steps: int) -> None:
    """Steps without an optimizer step between them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there was none
        for _ in range(num_steps):
            schedule.step()


def _set_place(schedule: LambdaLR, num_steps: int) -> None:
    """The rate of a step is a product of base rate and factor, whatever came before."""
    schedule.last_epoch, schedule._step_count = num_steps, num_steps + 1
    pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    rates = [base * factor(num_steps) for base, factor in pairs]
    _set_rates(schedule, rates)
    schedule._last_lr = rates


def _set_plateau(schedule: PlateauSchedule, state: Mapping[str, Any]) -> None:
    """The rate was lowered by what happened, so it goes on lowered as far."""
    start = getattr(schedule, _START)
    for name in _PLATEAU_PLACE:
        setattr(schedule, name, state["now"][name])
    rates = zip(start["rates"], state[_START]["rates"], state["now"]["_last_lr"], strict=True)
    lowered = [now * last / before if before else now for now, before, last in rates]
    _set_rates(schedule, lowered)
    schedule._last_lr = lowered


def _repeat(schedule: LRScheduler, num_steps: int) -> None:
    """Most classes make each rate from the one before, so all steps are taken again from the start."""
    _set_rates(schedule, getattr(schedule, _START)["rates"])
    advance(schedule, num_steps)


def _set_rates(schedule: LRScheduler, rates: Sequence[float | Tensor]) -> None:
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        if not isinstance(rate, Tensor):  # which Adafactor has made, and does not read
            group["lr"] = rate


def _now(schedule: LRScheduler) -> dict[str, Any]:
    return {key: value for key, value in schedule.state_dict().items() if key != _START}


def _class_name(schedule: LRScheduler) -> str:
    return f"{type(schedule).__module__}.{type(schedule).__qualname__}"


def _plain(value: Any) -> Any:
    """A copy that can be compared: what is no plain value is only named."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if type(value) in _PLAIN else type(value).__name__
