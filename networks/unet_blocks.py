"""How --network_args count the blocks of a U-Net: one row of blocks, from the input to the output."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLACE = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class BlockLayout:
    """The row of a family.

    Attributes:
        num_down: Input blocks, of which the first is the convolution of the latents.
        num_middle: 1 counts the middle as one block.
        num_up: Output blocks.
        has_ends: The row begins with what embeds time and sizes, and ends with the last convolution.
    """

    num_down: int
    num_middle: int
    num_up: int
    has_ends: bool

    @property
    def num_blocks(self) -> int:
        """Values in a list with one for each block."""
        return self.num_down + self.num_middle + self.num_up + 2 * self.has_ends

    @property
    def words(self) -> str:
        """The row, for messages."""
        row = [f"{self.num_down} down", f"{self.num_middle} middle", f"{self.num_up} up"]
        return ", ".join(["embedders", *row, "output"] if self.has_ends else row)

    def block(self, published: str) -> int | None:
        """The number of the block of a layer with this published name; None for what is outside of the row."""
        place = _PLACE.match(published)
        first = int(self.has_ends)
        if place is None:
            is_last = published.startswith("out.")
            return (self.num_blocks - 1 if is_last else 0) if self.has_ends else None
        number = int(place[2])
        if place[1] == "input_blocks":
            return first + number
        if place[1] == "middle_block":
            return first + self.num_down + min(number, self.num_middle - 1)
        return first + self.num_down + self.num_middle + number

    def pattern(self, block: int) -> str | None:
        """Regular expression for how published names of a block's layers begin; None where only single layers are:
        at the ends, and the convolution of the latents."""
        index = block - self.has_ends
        if index <= 0:
            return None
        if index < self.num_down:
            return rf"input_blocks\.{index}\.\d"
        index -= self.num_down
        if index < self.num_middle:
            return r"middle_block\.\d" if self.num_middle == 1 else rf"middle_block\.{index}"
        index -= self.num_middle
        return rf"output_blocks\.{index}\.\d" if index < self.num_up else None

    def row(self, down: tuple[float, ...], middle: tuple[float, ...], up: tuple[float, ...]) -> tuple[float, ...]:
        """Numbers for the three stretches as one for each block; 1 for the ends."""
        ends = (1.0,) * self.has_ends
        return (*ends, *down, *middle, *up, *ends)


LAYOUTS = {
    "sd1": BlockLayout(12, 1, 12, has_ends=False),
    "sd2": BlockLayout(12, 1, 12, has_ends=False),
    "sdxl": BlockLayout(9, 3, 9, has_ends=True),
}
"""{family: its row}"""
