"""Where the pictures of a sheet and the words beside them stand, in pixels. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.generation.axes import Place
from library.records import Size

MAX_PIXELS = 100_000_000  # of one sheet
GAP = 8
MIN_CELL = 96  # that a title needs
_LETTER_SHARE = 24  # letters of a 24th of a picture's side can be read when the sheet is shrunk to a screen
_LETTERS = (14, 48)  # the smallest and the largest
_LABEL_LETTERS = 16  # of a line beside a row
_TITLE_LINES = 3


@dataclass(frozen=True)
class SheetLayout:
    """Places on one sheet.

    Attributes:
        cell: Room of each picture.
        scale: Of pictures, 1 where they fit as they are.
        letters: Height of letters.
        title: Height of the line above everything, 0 without one.
        head: Height of the titles of columns.
        side: Width of the titles of rows, 0 without any.
        size: Of the whole sheet.
    """

    cell: Size
    scale: float
    letters: int
    title: int
    head: int
    side: int
    size: Size

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Left and top of a picture."""
        left = self.side + GAP + column * (self.cell.width + GAP)
        return left, self.title + self.head + GAP + row * (self.cell.height + GAP)


def lay_out(sizes: Sequence[Size], *, num_columns: int, num_rows: int, has_title: bool, has_rows: bool) -> SheetLayout:
    """The layout of sheets with pictures of these sizes, which are shrunk where a sheet would be too large."""
    largest = Size(max(size.width for size in sizes), max(size.height for size in sizes))
    scale = min(1.0, math.sqrt(MAX_PIXELS / (largest.width * largest.height * num_columns * num_rows)))
    cell = Size(max(round(largest.width * scale), MIN_CELL), max(round(largest.height * scale), MIN_CELL))
    letters = min(max(min(cell) // _LETTER_SHARE, _LETTERS[0]), _LETTERS[1])
    line = line_height(letters)
    title = line + GAP if has_title else 0
    head = _TITLE_LINES * line + GAP
    side = GAP + _LABEL_LETTERS * letters * 3 // 5 if has_rows else 0
    width = side + GAP + num_columns * (cell.width + GAP)
    height = title + head + GAP + num_rows * (cell.height + GAP)
    return SheetLayout(cell, scale, letters, title, head, side, Size(width, height))


def line_height(letters: int) -> int:
    """From one line of letters to the next."""
    return letters * 5 // 4


def sheets_of(places: Mapping[Place, object]) -> list[int]:
    """Numbers of the sheets that have a picture."""
    return sorted({place.sheet for place in places})
