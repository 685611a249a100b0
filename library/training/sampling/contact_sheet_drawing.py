"""Drawing a contact sheet with Pillow and its built-in font, which knows hardly more than ASCII."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from library.data.pixels.lettering import drawable, font

if TYPE_CHECKING:
    from PIL.Image import Image

    from library.training.sampling.contact_sheet import Row, SheetIndex

THUMBNAIL = 192  # longest side, in pixels
MAX_PIXELS = 16_000_000  # of all thumbnails of a sheet together
_LABEL_WIDTH = 200
_HEAD_HEIGHT = 24
_GAP = 6
_FONT_SIZE = 13
_LINE_HEIGHT = 16
_MIN_CELL = 84  # pixels that the title of a column needs
_LETTERS_A_LINE = 27
_MAX_LINES = 5
_PAPER, _INK, _FAINT, _EMPTY = "white", "#202020", "#707070", "#eeeeee"


class Thumbnails:
    """Small copies of pictures in a folder, kept compressed so that no sheet decodes all pictures again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[str, int], bytes] = {}  # by name and time of change
        self._used: set[tuple[str, int]] = set()

    def get(self, name: str, side: int) -> Image | None:
        """The picture with sides of at most `side` pixels; None where there is none any more."""
        from PIL import Image as pillow

        try:
            key = (name, (self._folder / name).stat().st_mtime_ns)
        except (OSError, ValueError):
            return None
        self._used.add(key)
        if key not in self._kept:
            self._kept[key] = _shrunk(self._folder / name)
        if not self._kept[key]:
            return None
        picture = pillow.open(io.BytesIO(self._kept[key]))
        picture.thumbnail((side, side))
        return picture

    def forget_unused(self) -> None:
        """Forget what nobody has asked for since the last call."""
        self._kept = {key: self._kept[key] for key in self._used}
        self._used = set()


def _shrunk(path: Path) -> bytes:
    """A thumbnail as JPEG; empty if the file is no picture."""
    from PIL import Image as pillow

    buffer = io.BytesIO()
    try:
        with pillow.open(path) as picture:
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            picture.convert("RGB").save(buffer, format="JPEG", quality=92)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError):  # of damaged files
        return b""
    return buffer.getvalue()


class _Layout(NamedTuple):
    """Places in pixels: the width of all cells, and top and height of each row."""

    cell_width: int
    rows: tuple[tuple[int, int], ...]
    width: int
    height: int


def draw_sheet(index: SheetIndex, thumbnails: Thumbnails) -> Image:
    """The sheet as a picture. Cells of pictures that are gone stay empty."""
    return draw_table([column.title for column in index.columns], index.rows, _cells(index, thumbnails))


def draw_table(titles: Sequence[str], rows: Sequence[Row], cells: Mapping[tuple[int, int], Image]) -> Image:
    """Pictures in rows and columns, with what stands beside and above them.

    Args:
        titles: Of the columns.
        rows: What stands beside each row.
        cells: {(row, column): picture}; the others stay empty.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw

    layout = _layout(cells, num_rows=len(rows), num_columns=len(titles))
    sheet = pillow.new("RGB", (layout.width, layout.height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, title in enumerate(titles):
        pen.text((_left(layout, number), 5), title, _INK, font(_FONT_SIZE))
    for number, (row, (top, height)) in enumerate(zip(rows, layout.rows, strict=True)):
        sheet.paste(_label(row, number + 1, height), (_GAP, top))
        for place in range(len(titles)):
            left = _left(layout, place)
            picture = cells.get((number, place))
            if picture is None:
                pen.rectangle((left, top, left + layout.cell_width - 1, top + height - 1), _EMPTY)
            else:
                sheet.paste(picture, (left, top))
    return sheet


def _cells(index: SheetIndex, thumbnails: Thumbnails) -> dict[tuple[int, int], Image]:
    """The thumbnails by row and column, smaller where there are very many."""
    number = len(index.columns) * len(index.rows)
    side = min(THUMBNAIL, int((MAX_PIXELS / max(number, 1)) ** 0.5))
    found = {
        (row, column): thumbnails.get(names[own.key], side)
        for row, own in enumerate(index.rows)
        for column, names in enumerate(index.columns.values())
        if own.key in names
    }
    thumbnails.forget_unused()
    return {place: picture for place, picture in found.items() if picture is not None}


def _layout(cells: Mapping[tuple[int, int], Image], *, num_rows: int, num_columns: int) -> _Layout:
    cell_width = max([_MIN_CELL, *(picture.width for picture in cells.values())])
    rows, top = [], _HEAD_HEIGHT
    for row in range(num_rows):
        heights = [picture.height for (own, _), picture in cells.items() if own == row]
        height = max([(_MAX_LINES + 2) * _LINE_HEIGHT, *heights])
        rows.append((top, height))
        top += height + _GAP
    return _Layout(cell_width, tuple(rows), _LABEL_WIDTH + 2 * _GAP + num_columns * (cell_width + _GAP), top)


def _left(layout: _Layout, column: int) -> int:
    return _LABEL_WIDTH + 2 * _GAP + column * (layout.cell_width + _GAP)


def _label(row: Row, number: int, height: int) -> Image:
    """What stands beside a row, cut off at its borders."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    label = pillow.new("RGB", (_LABEL_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(label)
    text = drawable(row.label) or ("(in letters that cannot be shown)" if row.label else "(no words)")
    lines = wrap(f"{number}. {text}", _LETTERS_A_LINE, max_lines=_MAX_LINES, placeholder="...")
    details = wrap(row.details, _LETTERS_A_LINE, max_lines=2, placeholder="...")
    for place, line in enumerate((*lines, *details)):
        pen.text((0, place * _LINE_HEIGHT), line, _INK if place < len(lines) else _FAINT, font(_FONT_SIZE))
    return label
