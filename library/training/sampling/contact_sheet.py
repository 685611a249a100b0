"""The contact sheet of a run: one picture that shows how its sample pictures change, prompts down and steps across.

What is on it is remembered in a small JSON file beside it, so that a run that is gone on with finds its older columns
again. The sheet has a limited number of columns: first and last stay, those between are thinned out evenly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from library.log import get_logger
from library.tensorfile import write_atomically
from library.training.sampling.prompt_lines import shortened
from library.training.sampling.prompts import SamplePrompt

logger = get_logger(__name__)

MAX_COLUMNS = 40
MAX_ROWS = 40
_MAX_LABEL = 160  # characters of a prompt


class Column(NamedTuple):
    """One time at which the prompts were drawn: after `step` optimizer steps; at the end of `epoch`, unless -1."""

    step: int
    epoch: int = -1

    @property
    def title(self) -> str:
        """What stands above it."""
        if self.step == 0:
            return "start"
        return f"epoch {self.epoch}" if self.epoch >= 0 else f"step {self.step}"


class Row(NamedTuple):
    """One prompt: what its pictures have in common, and what stands beside them."""

    key: str
    label: str
    details: str


@dataclass(frozen=True)
class SheetIndex:
    """Which pictures are on the sheet.

    Attributes:
        rows: From top to bottom.
        columns: {column: {key of a row: file name}}, from left to right.
    """

    rows: tuple[Row, ...] = ()
    columns: Mapping[Column, Mapping[str, str]] = field(default_factory=dict)

    def with_event(self, column: Column, rows: Sequence[Row], names: Mapping[str, str]) -> SheetIndex:
        """With the pictures of one event, {key of a row: file name}; those of `rows` go to the top, in their order.

        Too many columns are thinned out. Rows without a picture on the sheet go, and so do the last of too many.
        """
        columns = dict(sorted({**self.columns, column: dict(names)}.items()))
        columns = {kept: columns[kept] for kept in thinned(tuple(columns), MAX_COLUMNS)}
        shown = {key for pictures in columns.values() for key in pictures}
        ordered = {row.key: row for row in (*rows, *self.rows)}
        return SheetIndex(tuple(row for key, row in ordered.items() if key in shown)[:MAX_ROWS], columns)

    def until(self, step: int) -> SheetIndex:
        """Without the columns after this step."""
        return replace(self, columns={column: own for column, own in self.columns.items() if column.step <= step})


def thinned(columns: Sequence[Column], limit: int) -> tuple[Column, ...]:
    """At most `limit` of columns in ascending order, the first and the last among them.

    Of those between always the one goes whose neighbours are nearest to each other, so what stays is spread evenly.
    """
    kept = list(columns)
    while len(kept) > max(limit, 2):
        gaps = [after.step - before.step for before, after in zip(kept, kept[2:], strict=False)]
        del kept[gaps.index(min(gaps)) + 1]
    return tuple(kept)


def rows_of(prompts: Sequence[SamplePrompt]) -> list[Row]:
    """The row of each prompt. An edited prompt has another; one that stands twice in the file has two."""
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for prompt in prompts:
        settings = repr(replace(prompt, index=0)).encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(settings).hexdigest()[:16]
        number = seen[digest] = seen.get(digest, 0) + 1
        details = f"{prompt.width} x {prompt.height}, {prompt.sample_steps} steps, scale {prompt.scale:g}"
        seed = "" if prompt.seed is None else f", seed {prompt.seed}"
        rows.append(Row(f"{digest}-{number}", shortened(prompt.prompt, _MAX_LABEL), f"{details}{seed}"))
    return rows


class ContactSheet:
    """The sheet of one run.

    Args:
        folder: Of the sample pictures; sheet and index lie there too.
        output_name: Of the run; begins the names of both files.
        first_step: Optimizer steps that were done before this start: the columns up to there are taken over, with 0
            none. None takes over those before the first event.
    """

    def __init__(self, folder: Path, output_name: str | None, first_step: int | None = None) -> None:
        prefix = f"{output_name}_" if output_name else ""
        self.path = folder / f"{prefix}contact_sheet.png"
        self._index_path = folder / f"{prefix}contact_sheet.json"
        self._first_step = first_step
        self._index: SheetIndex | None = None
        self._thumbnails: Any = None

    def add(self, column: Column, prompts: Sequence[SamplePrompt], pictures: Mapping[int, Path]) -> None:
        """Add the pictures of one event and draw the sheet anew.

        Args:
            column: When it was.
            prompts: All that were to be drawn.
            pictures: {number in `prompts`: file in the folder of the sheet} of those that were drawn.

        Raises:
            OutputError: A file cannot be written.
        """
        from library.training.sampling.contact_sheet_drawing import Thumbnails, draw_sheet

        rows = rows_of(prompts)
        names = {rows[number].key: path.name for number, path in pictures.items()}
        self._index = self._older(column).with_event(column, rows, names)
        content = index_to_json(self._index).encode("ascii")
        write_atomically(self._index_path, lambda place: _write(place, content), len(content))
        self._thumbnails = self._thumbnails or Thumbnails(self.path.parent)
        sheet = draw_sheet(self._index, self._thumbnails)
        write_atomically(self.path, lambda place: sheet.save(place, format="PNG", compress_level=4))

    def back_to(self, step: int) -> None:
        """The run goes back: the columns after this step are of another way."""
        if self._index is not None:
            self._index = self._index.until(step)
        else:
            self._first_step = step

    def _older(self, column: Column) -> SheetIndex:
        """What is on the sheet already."""
        if self._index is not None:
            return self._index
        if self._first_step == 0:
            return SheetIndex()
        return self._read().until(column.step - 1 if self._first_step is None else self._first_step)

    def _read(self) -> SheetIndex:
        try:
            return index_from_json(self._index_path.read_bytes())
        except FileNotFoundError:
            return SheetIndex()
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s cannot be read (%s); the contact sheet begins anew.", self._index_path, error)
            return SheetIndex()


def index_to_json(index: SheetIndex) -> str:
    """The text of the index file."""
    columns = [{"step": c.step, "epoch": c.epoch, "pictures": dict(own)} for c, own in index.columns.items()]
    return json.dumps({"rows": [row._asdict() for row in index.rows], "columns": columns}, indent=1)


def index_from_json(content: bytes) -> SheetIndex:
    """The index that a file has.

    Raises:
        ValueError: It has none.
    """
    try:
        table = json.loads(content)
        rows = tuple(Row(str(row["key"]), str(row["label"]), str(row["details"])) for row in table["rows"])
        columns = {Column(int(own["step"]), int(own["epoch"])): _names(own["pictures"]) for own in table["columns"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an index: {error!r}") from None
    return SheetIndex(rows[:MAX_ROWS], {column: columns[column] for column in thinned(sorted(columns), MAX_COLUMNS)})


def _names(pictures: Mapping[str, Any]) -> dict[str, str]:
    """Plain file names, nothing outside of the folder."""
    return {str(key): Path(str(name)).name for key, name in pictures.items()}


def _write(place: Path, content: bytes) -> None:
    place.write_bytes(content)
