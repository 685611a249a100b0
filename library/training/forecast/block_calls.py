"""How the blocks of a denoiser are called in training: shapes of their arguments, and how much there is to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from library.training.forecast.fake_passes import FakeDenoiser, Inputs, Passes

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Call:
    """A call of a block.

    Attributes:
        arguments: Tensors without numbers, and other values.
        operations: Of its forward pass, those of products of matrices.
        named: Arguments that are given by name.
    """

    arguments: tuple[Any, ...]
    operations: int
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all tensors."""
        return tuple(tuple(t.shape) for t in (*self.arguments, *self.named.values()) if isinstance(t, Tensor))


def block_calls(denoiser: FakeDenoiser, inputs: Callable[[], Inputs], passes: Passes) -> Mapping[int, Call]:
    """The calls of the blocks that are run, {index: call}.

    Args:
        denoiser: Is run forward once.
        inputs: Makes its arguments.
        passes: Their precision counts.
    """
    seen: dict[int, Call] = {}
    counter = _Operations()
    model: Any = denoiser.model
    model.gradient_checkpointing = False
    with ExitStack() as stack:
        for index, block in denoiser.chosen.items():
            for handle in _noting(index, block, counter, seen):
                stack.callback(handle.remove)
        with denoiser.mode, passes.context(), counter:
            model(**inputs())
    return seen


def _noting(index: int, block: nn.Module, counter: _Operations, seen: dict[int, Call]) -> Iterator[RemovableHandle]:
    def enter(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[index] = Call(arguments, counter.total, named)

    def leave(*_: Any) -> None:
        seen[index] = replace(seen[index], operations=counter.total - seen[index].operations)

    yield block.register_forward_pre_hook(enter, with_kwargs=True)
    yield block.register_forward_hook(leave)


class _Operations(TorchDispatchMode):
    """Counts what products of matrices compute, by torch's own table; its own counter imports the compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # not in the table
            self.total += _attention_operations(*args[:3])
        elif kind in flop_registry:
            self.total += flop_registry[kind](*args, **(kwargs or {}), out_val=result)
        return result


def _attention_operations(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Both products. Shapes [B, H, N, D]."""
    return 2 * prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3])
