"""Which blocks of a model are swapped, into which buffer each goes, and which are fetched ahead: numbers only.

The swapped blocks stand in a row, at positions 0, 1, ... Each has one buffer for good, its position modulo the number
of buffers, so what autograd keeps of a block's weights for the backward pass stays an address that is right whenever
the block is there. Neighbours in the row have different buffers, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SwapPlan:
    """What is swapped.

    Attributes:
        depth: Blocks of the model.
        swapped: Indices of those that wait on the host, in the order of the model.
        prefetch: How many of them are on their way ahead of their use.
    """

    depth: int
    swapped: tuple[int, ...]
    prefetch: int

    @property
    def num_buffers(self) -> int:
        """Buffers on the device: for the block in use and for those on their way."""
        return min(len(self.swapped), 1 + self.prefetch)

    def buffer(self, position: int) -> int:
        """The buffer of a position."""
        return position % self.num_buffers

    def buffer_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Of each buffer: that of the largest block that it takes.

        Args:
            sizes: Of the swapped blocks.
        """
        return [max(sizes[number :: self.num_buffers]) for number in range(self.num_buffers)]

    def ahead(self, position: int, *, is_backward: bool = False, is_repeated: bool = False) -> Iterator[int]:
        """Positions to fetch while a block is in use, the next one first.

        Args:
            position: Of the block in use.
            is_backward: The blocks are used from the last to the first.
            is_repeated: After the last block of a forward pass the first one follows, as it does without a backward
                pass.
        """
        taken = {self.buffer(position)}
        for distance in range(1, self.num_buffers):
            other = position - distance if is_backward else position + distance
            if other >= len(self.swapped) and is_repeated:
                other -= len(self.swapped)
            if 0 <= other < len(self.swapped) and self.buffer(other) not in taken:
                taken.add(self.buffer(other))
                yield other


def swap_plan(depth: int, num_swapped: int, prefetch: int = 1) -> SwapPlan:
    """Choose blocks to swap: spread evenly, so that each has the time of as many others as possible to arrive in.

    Args:
        depth: Blocks of the model.
        num_swapped: How many are swapped; more than there are means all.
        prefetch: See `SwapPlan`.

    Raises:
        ValueError: A negative number.
    """
    if num_swapped < 0 or prefetch < 0:
        raise ValueError(f"numbers of blocks cannot be negative, got {num_swapped} and {prefetch}")
    number = min(num_swapped, depth)
    return SwapPlan(depth, tuple((2 * index + 1) * depth // (2 * number) for index in range(number)), prefetch)
