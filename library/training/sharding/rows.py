"""Which rows of a weight a process holds, and the whole of what processes hold rows of.

A weight is cut along its first axis into parts of equal length, one for each process in the order of their ranks; the
last ones may be shorter. What belongs to a weight (its average, the state of its optimizer) is cut likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from library.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Rows:
    """The part of one weight that is here.

    Attributes:
        shape: Of the whole weight, with at least one axis.
        rank: Of this process.
        number: Of processes.
    """

    shape: tuple[int, ...]
    rank: int
    number: int

    @property
    def length(self) -> int:
        """Rows of a full part."""
        return -(-self.shape[0] // self.number)

    @property
    def place(self) -> slice:
        """Rows that are here."""
        start = min(self.rank * self.length, self.shape[0])
        return slice(start, min(start + self.length, self.shape[0]))

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of what is here."""
        return (self.place.stop - self.place.start, *self.shape[1:])

    @property
    def row_size(self) -> int:
        """Numbers in a row."""
        return prod(self.shape[1:])

    @property
    def is_empty_anywhere(self) -> bool:
        """Whether a process has nothing of the weight."""
        return self.length * (self.number - 1) >= self.shape[0]

    def own(self, whole: Tensor) -> Tensor:
        """The rows that are here, as a view of the whole."""
        return whole[self.place]

    def whole(self, own: Tensor, group: ProcessGroup) -> Tensor | None:
        """All rows in host memory on the first process; None on the others. All of them call it."""
        flat = gather_flat(own, self.length * self.row_size, prod(self.shape), group)
        return None if flat is None else flat.view(self.shape)


def check_rows(name: str, rows: Rows) -> None:
    """Raise OptionError where a process would have nothing of a weight.

    Args:
        name: Of the weight.
        rows: Of any process.
    """
    if rows.is_empty_anywhere:
        raise OptionError(
            f"{name} has {rows.shape[0]} rows, which cannot be sharded over {rows.number} processes. Use fewer."
        )


def gather_flat(own: Tensor, length: int, total: int, group: ProcessGroup) -> Tensor | None:
    """Numbers of all processes one after the other, in host memory on the first process; None on the others.

    Args:
        own: Of this process: `length` numbers, or fewer behind the last of all.
        length: Of a full part.
        total: Of all together.
        group: Passes tensors in host memory; all its processes call this.
    """
    from torch import distributed

    flat = own.detach().to("cpu").contiguous().view(-1)
    padded = torch.zeros(length, dtype=own.dtype)
    padded[: flat.numel()] = flat
    sent = padded.view(torch.uint8)  # any number format passes as bytes
    if distributed.get_rank(group) != 0:
        distributed.gather(sent, None, dst=0, group=group)
        return None
    whole = torch.empty(length * distributed.get_world_size(group), dtype=own.dtype)
    distributed.gather(sent, list(whole.view(torch.uint8).chunk(distributed.get_world_size(group))), dst=0, group=group)
    return whole[:total]
