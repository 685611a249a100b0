"""Steps of an optimizer over weights in 16 bits, made in float32.

For the moment of its step a weight, its gradient and what the optimizer keeps for it are widened to float32; then they
are put back in 16 bits (`library/memory/rounding.py`). Weights take their step a few at a time, so that not more than
these few are in float32. What the optimizer does in between is its own, and is the same as for weights in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from library.memory.rounding import round_stochastically, round_with_rest
from library.rng import stream_seed
from library.training.optimization.part_steps import GroupPart, narrowed

_SHORT = (torch.bfloat16, torch.float16)
_REST = "rest_of_weight"  # key of an optimizer's state
_MODES = ("train", "eval")
_NUMBERS_AT_A_TIME = 2**22  # or one weight that has more


@dataclass
class Rounding:
    """How an optimizer's weights are put back in bf16. Weights in fp16 are rounded to the nearest, with 11 bits.

    Attributes:
        keeps_rest: Keep what a weight loses beside it (Kahan); else it is rounded at random. What the optimizer keeps
            is rounded at random either way.
        seed: Keys the random bits.
        is_apart: Each weight may take its step without the others.
        shortens_state: What the optimizer keeps in float32, of a weight's shape, is kept in bf16.
        numbers: {id of a parameter: its place among all}.
    """

    keeps_rest: bool
    seed: int
    is_apart: bool
    shortens_state: bool
    numbers: dict[int, int]
    generators: dict[torch.device, Generator] = field(default_factory=dict)

    def generator(self, parameter: Tensor, step: int) -> Generator:
        """The random bits of a parameter in a step."""
        generator = self.generators.setdefault(parameter.device, Generator(parameter.device))
        generator.manual_seed(stream_seed(self.seed, "rounding", step, self.numbers[id(parameter)]))
        return generator


def with_rounding(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """A subclass whose step is made in float32, like its changes of mode. Its optimizers need `set_rounding`."""
    written_step = optimizer_class.step
    names = {"__module__": optimizer_class.__module__, "__qualname__": optimizer_class.__qualname__}

    def step(self: Any, closure: Callable[[], Any] | None = None) -> None:
        before = {id(group): _without_parameters(group) for group in self.param_groups}
        for part in _parts(self.param_groups, self.rounding.is_apart):
            for group, _ in part:  # what a group counts goes on once a step, not once a part
                group.update(before[id(group)])
            _step_part(self, part, written_step)
        self.rounded_steps += 1

    modes = {name: _in_float32(getattr(optimizer_class, name)) for name in _MODES if hasattr(optimizer_class, name)}
    return type(optimizer_class.__name__, (optimizer_class,), {**names, **modes, "step": step})


def _in_float32(written_change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A change of mode that moves weights in fp16 where all that is kept for them is, in float32; others as written."""

    def change(self: Any) -> None:
        before = {id(group): _without_parameters(group) for group in self.param_groups}
        for group in self.param_groups:
            for own in [[parameter] for parameter in group["params"]] or [[]]:
                group.update(before[id(group)])  # which tells the mode
                if any(parameter.dtype == torch.float16 for parameter in own):
                    _step_part(self, [(group, own)], written_change)
                else:
                    with narrowed(self, [(group, own)]):
                        written_change(self)

    return change


def set_rounding(optimizer: Optimizer, *, keeps_rest: bool, seed: int, is_apart: bool, shortens_state: bool) -> None:
    """Say how; see `Rounding`. `rounded_steps`, which keys the random bits too, is part of the optimizer's state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    optimizer.rounding = Rounding(keeps_rest, seed, is_apart, shortens_state, numbers)  # type: ignore[attr-defined]
    optimizer.rounded_steps = 0  # type: ignore[attr-defined]


def _without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _parts(groups: Sequence[dict[str, Any]], is_apart: bool) -> Iterator[list[GroupPart]]:
    """The groups with the parameters that have gradients, a few of these at a time."""
    if not is_apart:
        yield [(group, [*group["params"]]) for group in groups]
        return
    for group in groups:
        part: list[Parameter] = []
        size = 0
        for parameter in [p for p in group["params"] if p.grad is not None]:
            if part and size + parameter.numel() > _NUMBERS_AT_A_TIME:
                yield [(group, part)]
                part, size = [], 0
            part.append(parameter)
            size += parameter.numel()
        if part:
            yield [(group, part)]


class _Widened(NamedTuple):
    """A parameter in 16 bits, and the one in float32 that takes the step for it."""

    parameter: Parameter
    wide: Parameter


@torch.no_grad()
def _step_part(optimizer: Any, part: Sequence[GroupPart], written_step: Callable[[Any], Any]) -> None:
    wide_groups, widened = [], []
    for group, parameters in part:
        wides = [_widen(optimizer, p) if p.dtype in _SHORT else p for p in parameters]
        wide_groups.append((group, wides))
        widened += [_Widened(p, wide) for p, wide in zip(parameters, wides, strict=True) if wide is not p]
    try:
        with narrowed(optimizer, wide_groups):
            written_step(optimizer)
        for pair in widened:
            _put_back(optimizer, pair)
    finally:
        for _, wide in widened:
            optimizer.state.pop(wide, None)


def _widen(optimizer: Any, parameter: Parameter) -> Parameter:
    """A parameter in float32 with gradient and state, in place of the one in 16 bits."""
    state = {**optimizer.state.get(parameter, {})}
    rest = state.pop(_REST, None)
    wide = Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad)
    if rest is not None:
        wide.add_(rest)
    if parameter.grad is not None:
        wide.grad = parameter.grad.float()
    if state:
        optimizer.state[wide] = {key: _longer(value) for key, value in state.items()}
    return wide


def _longer(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _SHORT else value


def _put_back(optimizer: Any, pair: _Widened) -> None:
    """Round the weight and its state."""
    parameter, wide = pair
    rounding: Rounding = optimizer.rounding
    wide.grad = None
    before = optimizer.state.get(parameter, {})
    after = optimizer.state.pop(wide, {})
    if parameter.dtype == torch.float16:
        parameter.copy_(wide)
    else:
        generator = rounding.generator(parameter, optimizer.rounded_steps)
        if rounding.keeps_rest:
            rest = before[_REST] if _REST in before else torch.zeros_like(parameter.detach())
            round_with_rest(parameter.detach(), rest, wide.detach())
            after[_REST] = rest
        else:
            round_stochastically(parameter.detach(), wide.detach(), generator)
        if rounding.shortens_state:
            for key, value in after.items():
                if key != _REST and _is_like(value, parameter):
                    after[key] = _shorter(value, before.get(key), generator)
    if after:
        optimizer.state[parameter] = after
    else:
        optimizer.state.pop(parameter, None)


def _is_like(value: Any, parameter: Tensor) -> bool:
    """Not the count of steps, which has no dimension."""
    is_long = isinstance(value, Tensor) and value.dtype == torch.float32 and value.ndim > 0
    return is_long and value.shape == parameter.shape


def _shorter(value: Tensor, place: Any, generator: Generator) -> Tensor:
    """A state tensor in bf16, where it was before if it was."""
    is_there = isinstance(place, Tensor) and place.dtype == torch.bfloat16
    short = place if is_there else torch.empty_like(value, dtype=torch.bfloat16)
    round_stochastically(short, value, generator)
    return short
