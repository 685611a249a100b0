"""What an optimizer keeps for each weight, and what it takes for a moment while it steps: measured on small weights.

The optimizer is the real one, with its real arguments. What it keeps of a small matrix is told apart by its length: as
many numbers as the weight has, one for so many of them, one for each row or column, or one in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from library.memory.live_memory import LiveMemory

Shape = tuple[int, ...]

NUMBERS_AT_A_TIME = 2**22  # weights in 16 bits take their steps in float32 so many at a time, or one that has more
LEAST_IN_8_BITS = 4096  # numbers; bitsandbytes keeps the state of smaller weights in float32
_SIDES = {False: (8, 24), True: (96, 128)}  # of the weights that are tried: fewer and more numbers than that
_MANY = 4  # weights, with which an optimizer shows whether it treats all at once
_TABLES = ("qmap",)  # in the name of what all weights share


@dataclass(frozen=True)
class Stepping:
    """An optimizer as the options ask for it, over weights of one dtype."""

    name: str
    arguments: tuple[str, ...]
    dtype: torch.dtype
    rounding: str | None

    @property
    def is_rounded(self) -> bool:
        """Weights take their steps in float32."""
        if self.dtype == torch.float16:
            return self.rounding is not None
        return self.dtype == torch.bfloat16 and self.rounding not in (None, "nearest")

    @property
    def steps_apart(self) -> bool:
        """The step of a weight does not depend on the others."""
        from library.training.optimization.optimizers import find_optimizer

        return find_optimizer(self.name).steps_apart

    @property
    def device(self) -> str:
        """Where it is tried: bitsandbytes on the GPU that it is made for."""
        from library.training.optimization.optimizers import find_optimizer

        is_made_for_gpu = find_optimizer(self.name).package == "bitsandbytes"
        return "cuda" if is_made_for_gpu and torch.cuda.is_available() else "cpu"

    def make(self, parameters: Sequence[Parameter]) -> Any:
        """The optimizer."""
        from library.training.optimization.optimizers import make_optimizer

        name = self.name[5:] if self.name.lower().startswith("paged") else self.name  # paging needs a GPU
        groups = [{"params": list(parameters)}]
        return make_optimizer(name, groups, learning_rate=1e-3, args=self.arguments or None, rounding=self.rounding)


@dataclass(frozen=True)
class Kept:
    """What is kept for weights of one kind, in bytes."""

    each: float = 0.0  # number of the weight
    rows: float = 0.0  # for each number but those along the last dimension
    columns: float = 0.0  # for each number but those along the last but one

    def bytes_of(self, shape: Shape) -> int:
        """Of a weight."""
        count = prod(shape)
        rows, columns = (count // size for size in (*shape[:-3:-1], count, count)[:2]) if len(shape) > 1 else (0, 0)
        return round(self.each * count + self.rows * rows + self.columns * columns)


def state_bytes(shapes: Sequence[Shape], stepping: Stepping) -> int:
    """What is kept of all weights, but for counts of steps."""
    kept = {shape: _kept(stepping, len(shape), prod(shape) >= LEAST_IN_8_BITS).bytes_of(shape) for shape in set(shapes)}
    return sum(kept[shape] for shape in shapes)


def step_bytes(shapes: Sequence[Shape], stepping: Stepping, *, is_alone: bool) -> int:
    """What a step takes for a moment.

    Args:
        shapes: Of all weights.
        stepping: The optimizer.
        is_alone: Each weight is stepped by itself, inside the backward pass.
    """
    one, sizes = _passing(stepping, 1), [prod(shape) for shape in shapes]
    if is_alone:
        return round(one * max(sizes))
    if stepping.is_rounded and stepping.steps_apart:
        return round(one * max(*sizes, min(NUMBERS_AT_A_TIME, sum(sizes))))
    many = _passing(stepping, _MANY)
    is_together = stepping.is_rounded or many > (_MANY - 1) * one
    return round(one * sum(sizes) if is_together else many * max(sizes))


@cache
def _kept(stepping: Stepping, num_dimensions: int, is_large: bool) -> Kept:
    shape = _trial_shape(num_dimensions, is_large)
    weight = Parameter(torch.ones(shape, dtype=stepping.dtype, device=stepping.device))
    optimizer = stepping.make([weight])
    _step(optimizer, [weight])
    count, last, before = prod(shape), shape[-1], shape[-2] if len(shape) > 1 else 0
    each = rows = columns = 0.0
    for name, value in optimizer.state[weight].items():
        if not isinstance(value, Tensor) or value.ndim == 0 or any(table in name for table in _TABLES):
            continue
        size = value.numel() * value.element_size()
        if len(shape) > 1 and value.numel() == count // last:
            rows += value.element_size()
        elif len(shape) > 1 and value.numel() == count // before:
            columns += value.element_size()
        elif value.numel() > 1:
            each += size / count
    return Kept(each, rows, columns)


def _trial_shape(num_dimensions: int, is_large: bool) -> Shape:
    side, last = _SIDES[is_large]
    if num_dimensions < 2:
        return (side * last,)
    return (*(1 for _ in range(num_dimensions - 2)), side, last)


@cache
def _passing(stepping: Stepping, number: int) -> float:
    """Bytes for a moment, of each number of one of so many weights."""
    shape = _trial_shape(2, True)
    weights = [Parameter(torch.ones(shape, dtype=stepping.dtype, device=stepping.device)) for _ in range(number)]
    optimizer = stepping.make(weights)
    _step(optimizer, weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    with LiveMemory([*weights, *(weight.grad for weight in weights if weight.grad is not None), *states]) as live:
        optimizer.step()
    return live.peak / prod(shape)


def _step(optimizer: Any, weights: Sequence[Parameter]) -> None:
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.01)
    _quietly(partial(optimizer.step))


def _quietly(act: Callable[[], Any]) -> None:
    """Some optimizers print what they do, and draw random numbers."""
    import io
    from contextlib import redirect_stdout

    with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):
        act()
