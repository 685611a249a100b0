"""How long a block takes: the same passes again and again, each waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

_LEAST, _MOST = 3, 50  # passes


@dataclass(frozen=True)
class BlockTime:
    """Seconds of one pass, medians.

    Attributes:
        backward: 0 where there is none.
    """

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.forward + self.backward


def time_block(
    block: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    seconds: float,
    is_trained: bool,
    weights: Sequence[Tensor] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
    clock: Callable[[], float] = perf_counter,
) -> BlockTime:
    """Time a block. Gradients are computed and forgotten: no `grad` changes and no hook of a parameter hears of it.

    The first pass is not counted: it may compile, and takes its memory.

    Args:
        block: Gives a tensor, or several and None. An autocast that it needs is the caller's.
        inputs: Tensors, which get gradients if they ask for some, and other values.
        seconds: About how long; three passes are made in any case.
        is_trained: Also time the backward pass.
        weights: What gradients are taken of beside the inputs. Those that the block does not use are left out.
        named: Inputs that are given by name.
        clock: Gives seconds.

    Returns:
        Seconds of one pass.
    """
    device = next(value.device for value in inputs if isinstance(value, Tensor))
    run = partial(block, *inputs, **named)
    sources = [*inputs, *named.values(), *weights]
    times: list[tuple[float, float]] = []

    def now() -> float:
        _wait_for(device)
        return clock()

    _timed(run, sources, now, is_trained)
    began = perf_counter()
    while len(times) < _LEAST or (len(times) < _MOST and perf_counter() - began < seconds):
        times.append(_timed(run, sources, now, is_trained))
    return BlockTime(median(forward for forward, _ in times), median(backward for _, backward in times))


def _timed(
    run: Callable[[], Any], sources: Sequence[Any], now: Callable[[], float], is_trained: bool
) -> tuple[float, float]:
    began = now()
    with nullcontext() if is_trained else torch.no_grad():
        outputs = run()
    between = now()
    if not is_trained:
        return between - began, 0.0
    take_gradients(outputs, sources)
    return between - began, now() - between


def take_gradients(outputs: Any, sources: Sequence[Any]) -> None:
    """The backward pass from what a block gave to those of the sources that take part, without effect on any of them.

    Args:
        outputs: A tensor, or several and None.
        sources: Tensors, and other values.
    """
    given = [outputs] if isinstance(outputs, Tensor) else outputs
    ends = [value for value in given if isinstance(value, Tensor) and value.requires_grad]
    wanted = [value for value in sources if isinstance(value, Tensor) and value.requires_grad]
    if ends and wanted:
        torch.autograd.grad(ends, wanted, [torch.ones_like(end) for end in ends], allow_unused=True)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
