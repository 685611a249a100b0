"""What the options ask of a schedule: names, shares of steps and arguments, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

from library.errors import OptionError
from library.training.optimization.optimizer_arguments import parse_key_values
from library.training.optimization.schedule_factors import FACTORS, POLYNOMIAL_END, SHAPES, Schedule

ADAFACTOR, PLATEAU = "adafactor", "reduce_lr_on_plateau"
ARGS_FLAG = "--lr_scheduler_args"
_WITHOUT_WARMUP = ("constant", "piecewise_constant", PLATEAU)
_NEEDS_LOWEST = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")


class ScheduleOptions(Protocol):
    """The options of a schedule."""

    @property
    def lr_scheduler(self) -> str: ...
    @property
    def lr_warmup_steps(self) -> int | float: ...
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
    def lr_scheduler_type(self) -> str: ...
    @property
    def lr_scheduler_args(self) -> Sequence[str] | None: ...


# Option, the value that means "not given", and the schedules that read it.
_READ_BY: tuple[tuple[str, int | float | None, tuple[str, ...]], ...] = (
    ("lr_decay_steps", 0, ("warmup_stable_decay",)),
    ("lr_scheduler_num_cycles", 1, ("cosine_with_restarts", *_NEEDS_LOWEST, "warmup_stable_decay")),
    ("lr_scheduler_power", 1, ("polynomial",)),
    ("lr_scheduler_timescale", None, ("inverse_sqrt",)),
    ("lr_scheduler_min_lr_ratio", None, (*_NEEDS_LOWEST, "warmup_stable_decay")),
)


def whole_steps(amount: int | float, num_steps: int, flag: str) -> int:
    """A number of steps, or a share of all steps where it is below 1.

    Raises:
        OptionError: A fraction above 1, or a negative number.
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise OptionError(f"{flag} {amount}: give a whole number of steps, or a share of all steps below 1.")
    return int(amount) if amount >= 1 else int(amount * num_steps)


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
        OptionError: Unknown name; values that it needs and lacks, or cannot have.
    """
    check_name(name)
    check_warmup(name, warmup)
    values: dict[str, Any] = {"warmup": whole_steps(warmup, num_steps, "--lr_warmup_steps"), "base_rate": base_rate}
    if options is not None:
        values |= {
            "decay": whole_steps(options.lr_decay_steps, num_steps, "--lr_decay_steps"),
            "num_cycles": options.lr_scheduler_num_cycles,
            "power": options.lr_scheduler_power,
            "timescale": options.lr_scheduler_timescale,
            "min_ratio": options.lr_scheduler_min_lr_ratio,
            **read_arguments(name, options.lr_scheduler_args, base_rate),
        }
    if name in _NEEDS_LOWEST and values.get("min_ratio") is None:
        raise OptionError(f"--lr_scheduler {name} needs --lr_scheduler_min_lr_ratio, for instance 0.1.")
    if name == "polynomial" and base_rate <= POLYNOMIAL_END:
        raise OptionError(
            f"--lr_scheduler polynomial ends at a rate of {POLYNOMIAL_END}, so --learning_rate must be above it, "
            f"got {base_rate}."
        )
    return Schedule(name=name, num_steps=num_steps, **values)


def check_name(name: str) -> None:
    """Refuse a name that no schedule has, with the nearest one."""
    known = (*FACTORS, PLATEAU)
    if name in known:
        return
    near = get_close_matches(name, [*known, ADAFACTOR], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise OptionError(f"--lr_scheduler {name}: unknown schedule.{hint} Available: {', '.join(known)}.")


def check_warmup(name: str, warmup: int | float) -> None:
    """Refuse a warm-up where a schedule has none."""
    if name in _WITHOUT_WARMUP and warmup:
        instead = "Use --lr_scheduler constant_with_warmup, or leave the warm-up out."
        if name != "constant":
            instead = "Leave the warm-up out."
        raise OptionError(f"--lr_scheduler {name} cannot have --lr_warmup_steps {warmup}. {instead}")
    whole_steps(warmup, 1, "--lr_warmup_steps")


def idle_options(name: str, options: ScheduleOptions) -> list[str]:
    """The flags that were given and that the schedule does not read."""
    return [f"--{key}" for key, unset, names in _READ_BY if getattr(options, key) != unset and name not in names]


def read_arguments(name: str, items: Sequence[str] | None, base_rate: float) -> dict[str, Any]:
    """The `--lr_scheduler_args` of a named schedule, as values of `Schedule`.

    Raises:
        OptionError: An argument that the schedule does not have, or a wrong value.
    """
    readers = _ARGUMENTS.get(name, {})
    arguments = parse_key_values(items, ARGS_FLAG)
    unknown = [key for key in arguments if key not in readers]
    if unknown:
        known = f"It takes {', '.join(readers)}." if readers else "It takes none."
        raise OptionError(f"{ARGS_FLAG}: {name} has no argument {', '.join(unknown)}. {known}")
    values: dict[str, Any] = {}
    for key, reader in readers.items():
        if key in arguments or key == "step_rules":
            values |= reader(key, arguments.get(key), base_rate)
    return values


def _rules(key: str, value: Any, base_rate: float) -> dict[str, Any]:
    """The rules "1:10,0.1:20,0.01": factor 1 before step 10, 0.1 before step 20, then 0.01."""
    text = "" if value is None else str(value)
    try:
        *bounded, last = text.split(",")
        pairs = [rule.split(":") for rule in bounded]
        rules = sorted(((float(factor), int(end)) for factor, end in pairs), key=lambda rule: rule[1])
        return {"rules": (*rules, (float(last), None))}
    except ValueError:
        raise OptionError(
            f'--lr_scheduler piecewise_constant needs {ARGS_FLAG} "step_rules=1:10,0.1:20,0.01" '
            f"(factor:until_step, the last without a step), got {text or 'none'!r}."
        ) from None


def _shape(key: str, value: Any, base_rate: float) -> dict[str, Any]:
    if value not in SHAPES:
        raise OptionError(f"{ARGS_FLAG}: {key} is one of {', '.join(SHAPES)}, got {value!r}.")
    return {key: value}


def _lowest(key: str, value: Any, base_rate: float) -> dict[str, Any]:
    return {"min_ratio": _number(key, value, base_rate) / base_rate}


def _start(key: str, value: Any, base_rate: float) -> dict[str, Any]:
    return {"warmup_start": _number(key, value, 1.0)}


def _number(key: str, value: Any, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise OptionError(f"{ARGS_FLAG}: {key} is a number from 0 to {highest:g}, got {value!r}.")
    return float(value)


_Reader = Callable[[str, Any, float], dict[str, Any]]
_ARGUMENTS: Mapping[str, Mapping[str, _Reader]] = {
    "piecewise_constant": {"step_rules": _rules},
    "warmup_stable_decay": {"warmup_type": _shape, "decay_type": _shape},
    "cosine_with_min_lr": {"min_lr": _lowest},
    "cosine_warmup_with_min_lr": {"min_lr": _lowest, "warmup_lr_rate": _start},
}
