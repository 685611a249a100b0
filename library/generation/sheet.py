"""Contact sheets of `--xyz`: the pictures of a plan in rows and columns with what stands beside them, and a JSON file
that says what each of them is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.pixels.lettering import drawable, font
from library.errors import OutputError
from library.generation.axes import Axis, Cell, Place
from library.generation.png_text import SHEET_CHUNK, png_chunks
from library.generation.sheet_layout import GAP, SheetLayout, lay_out, line_height, sheets_of
from library.log import get_logger
from library.records import Size
from library.tensorfile import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

logger = get_logger(__name__)

MAX_PNG_BYTES = 32 * 1024**2  # what most viewers and web pages still take; larger sheets become JPEG
_PAPER, _INK, _EMPTY = "white", "#202020", "#eeeeee"


def write_sheets(
    axes: Sequence[Axis], cells: Sequence[Cell], pictures: Mapping[Place, Path], *, folder: Path, name: str
) -> list[Path]:
    """Write the sheets of a plan beside its pictures.

    Args:
        axes: One to three.
        cells: The plan.
        pictures: {place: file} of what was drawn; the other places stay empty.
        folder: Of the sheets.
        name: Begins the names of all files.

    Returns:
        The sheets, and the JSON file behind them.

    Raises:
        OutputError: A file cannot be written.
        OSError: A picture cannot be read.
    """
    if not pictures:
        return []
    several = len(axes) == 3 and len(axes[2].values) > 1
    written = []
    for number in sheets_of(pictures):
        own = {place: path for place, path in pictures.items() if place.sheet == number}
        title = axes[2].title(number) if len(axes) == 3 else ""
        sheet = draw_sheet(axes, own, title)
        file = folder / (f"{name}_{number + 1}.png" if several else f"{name}.png")
        written.append(_save(sheet, file, f"{name}.json"))
    content = json.dumps(describe_sheets(axes, cells, pictures, folder), indent=1).encode("ascii")
    index = folder / f"{name}.json"
    write_atomically(index, lambda place: _write(place, content), len(content))
    return [*written, index]


def describe_sheets(
    axes: Sequence[Axis], cells: Sequence[Cell], pictures: Mapping[Place, Path], folder: Path
) -> dict[str, Any]:
    """What the JSON file says: the axes, and of each picture its place, its values and its file."""
    entries = [
        {**cell.place._asdict(), "values": dict(cell.values), "file": _relative(pictures[cell.place], folder)}
        for cell in sorted(cells, key=lambda cell: cell.place[::-1])
        if cell.place in pictures
    ]
    return {"axes": [{"name": axis.name, "values": list(axis.values)} for axis in axes], "pictures": entries}


def draw_sheet(axes: Sequence[Axis], pictures: Mapping[Place, Path], title: str = "") -> Image:
    """One sheet. Pictures keep their shape; smaller ones stand at the top left of their room."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    rows = axes[1].values if len(axes) > 1 else ("",)
    layout = lay_out(
        [_size_of(path) for path in pictures.values()],
        num_columns=len(axes[0].values),
        num_rows=len(rows),
        has_title=bool(title),
        has_rows=len(axes) > 1,
    )
    sheet = pillow.new("RGB", layout.size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_titles(pen, layout, axes, title)
    for column in range(len(axes[0].values)):
        for row in range(len(rows)):
            left, top = layout.corner(column, row)
            path = next((path for place, path in pictures.items() if place[:2] == (column, row)), None)
            if path is None:
                pen.rectangle((left, top, left + layout.cell.width - 1, top + layout.cell.height - 1), _EMPTY)
            else:
                sheet.paste(_shrunk(path, layout.scale), (left, top))
    return sheet


def wrapped(text: str, letters: int, width: int, max_lines: int) -> list[str]:
    """The text in lines of at most `width` pixels; words that are too long are broken, what is left over is "..."."""
    shown = drawable(text) or ("(in letters that cannot be shown)" if text.strip() else "(no words)")
    lines = [""]
    for word in shown.split():
        for part in _broken(word, letters, width):
            longer = f"{lines[-1]} {part}".strip()
            if font(letters).getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font(letters).getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], f"{last}..."]


def _broken(word: str, letters: int, width: int) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and font(letters).getlength(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _draw_titles(pen: ImageDraw, layout: SheetLayout, axes: Sequence[Axis], title: str) -> None:
    line = line_height(layout.letters)

    def draw(text: str, left: int, top: int, width: int, max_lines: int) -> None:
        for number, words in enumerate(wrapped(text, layout.letters, width, max_lines)):
            pen.text((left, top + number * line), words, _INK, font(layout.letters))

    if title:
        draw(title, layout.corner(0, 0)[0], 0, layout.size.width - layout.corner(0, 0)[0], 1)
    for column in range(len(axes[0].values)):
        draw(axes[0].title(column), layout.corner(column, 0)[0], layout.title, layout.cell.width, layout.head // line)
    for row in range(len(axes[1].values) if len(axes) > 1 else 0):
        draw(axes[1].title(row), GAP, layout.corner(0, row)[1], layout.side - GAP, layout.cell.height // line)


def _size_of(path: Path) -> Size:
    from PIL import Image as pillow

    with pillow.open(path) as picture:
        return Size(*picture.size)


def _shrunk(path: Path, scale: float) -> Image:
    from PIL import Image as pillow

    with pillow.open(path) as picture:
        whole = picture.convert("RGB")
    if scale == 1:
        return whole
    size = (max(round(whole.width * scale), 1), max(round(whole.height * scale), 1))
    return whole.resize(size, pillow.Resampling.LANCZOS)


def _save(sheet: Image, path: Path, index: str) -> Path:
    """Write a sheet, which names the JSON file; as JPEG where a PNG would be too large."""
    chunks = png_chunks({SHEET_CHUNK: index})
    write_atomically(path, partial(sheet.save, format="PNG", compress_level=6, pnginfo=chunks))
    if path.stat().st_size <= MAX_PNG_BYTES:
        return path
    smaller = path.with_suffix(".jpg")
    try:
        write_atomically(smaller, partial(sheet.save, format="JPEG", quality=92))
    except ValueError as error:  # sides that JPEG cannot have
        logger.warning("%s is not made smaller as JPEG (%s).", path, error)
        return path
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be removed ({error.strerror or error}); {smaller} is the sheet.") from None
    return smaller


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _write(place: Path, content: bytes) -> None:
    place.write_bytes(content)
