"""Optimizer steps inside the backward pass: what is done with a gradient is done at once, and its memory is free again.

The parameters are dealt out into parts: each alone, or all of a block. As soon as all gradients of a part are there,
its step is made. So only the gradients of one part and of those that are being computed are in memory, not all.

Source: Lv et al. 2023, arXiv:2306.09782 (LOMO).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import Parameter

from library.memory.blocks import blocks


class BackwardParts:
    """Calls `step` for each part of the parameters in the backward pass.

    Attributes:
        num_done: Parts whose step was begun in the last backward pass.
    """

    def __init__(self, parts: Sequence[Sequence[Parameter]], step: Callable[[int], None]) -> None:
        """Begin to listen to gradients.

        Args:
            parts: No parameter is in two of them.
            step: Gets the number of a part whose gradients are all there; afterwards they are freed.
        """
        self._parts = parts
        self._step = step
        self._missing = [len(part) for part in parts]
        self._is_on = False
        self.num_done = 0
        self._handles = [
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))
            for number, part in enumerate(parts)
            for parameter in part
        ]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context for one backward pass. At its end, parameters that got no gradient are stepped with zeros, but for
        those that train no more.

        Where the pass fails, no gradient is left behind, and nothing takes back the steps that were made.
        """
        self._missing = [sum(parameter.requires_grad for parameter in part) for part in self._parts]
        self._is_on, self.num_done = True, 0
        try:
            yield
            self._finish()
        finally:
            self._is_on = False
            for number in range(len(self._parts)):
                self._free(number)

    def close(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()

    def _arrived(self, number: int) -> None:
        if not self._is_on:
            return
        self._missing[number] -= 1
        if not self._missing[number]:
            self._make_step(number)

    def _finish(self) -> None:
        for number, part in enumerate(self._parts):
            if self._missing[number] > 0:
                for parameter in part:
                    if parameter.grad is None and parameter.requires_grad:
                        parameter.grad = torch.zeros_like(parameter)
                self._make_step(number)

    def _make_step(self, number: int) -> None:
        self.num_done += 1
        self._step(number)
        self._free(number)

    def _free(self, number: int) -> None:
        for parameter in self._parts[number]:
            parameter.grad = None


def each_alone(parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    """Every parameter is a part."""
    return [[parameter] for parameter in parameters]


def by_block(models: Iterable[nn.Module], parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    """A part for each block of the models that has any of the parameters; every other parameter is a part."""
    block_of: dict[int, int] = {}
    for number, block in enumerate(block for model in models for block in blocks(model)):
        for parameter in block.parameters():
            block_of.setdefault(id(parameter), number)
    parts: dict[object, list[Parameter]] = {}
    for parameter in parameters:
        parts.setdefault(block_of.get(id(parameter), parameter), []).append(parameter)
    return list(parts.values())
