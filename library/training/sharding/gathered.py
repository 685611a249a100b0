"""Tensors of a sharded model that are gathered when they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LaterTensor:
    """Tells the shape and type of a whole tensor; `detach` gathers it. For what writes one tensor after the other.

    Attributes:
        outline: Has the shape and the type.
        gather: Gives the whole tensor, in host memory.
    """

    outline: Tensor
    gather: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        return self.outline.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.outline.dtype

    def numel(self) -> int:
        """How many numbers."""
        return self.outline.numel()

    def element_size(self) -> int:
        """Bytes of one."""
        return self.outline.element_size()

    def detach(self) -> Tensor:
        """The whole tensor. It is not kept."""
        return self.gather(self.outline)
