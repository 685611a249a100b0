"""The table of tags that belongs to a tagger: what each of its scores is about.

Two kinds exist: selected_tags.csv with the columns name and category (a number), and tag_mapping.json, {index: {"tag":
name, "category": word}} or {"idx_to_tag": {index: name}, "tag_to_category": {name: word}}.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from library.data.files.json_faults import describe_fault
from library.data.files.strict_json import parse_json
from library.data.files.text_files import decode_text
from library.errors import CheckpointError
from library.log import get_logger

CSV_FILE, JSON_FILE = "selected_tags.csv", "tag_mapping.json"

CATEGORIES = ("general", "character", "copyright", "artist", "meta", "model", "quality", "rating")
_NUMBERS = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"}
_COLUMNS = ("name", "category")

logger = get_logger(__name__)


class Label(NamedTuple):
    """What a score is about.

    Attributes:
        name: The tag as the table has it.
        category: One of CATEGORIES.
    """

    name: str
    category: str


def read_labels(file: Path) -> tuple[Label, ...]:
    """Read a table, in the order of the scores.

    Args:
        file: A .csv or .json of one of the two kinds.

    Raises:
        CheckpointError: It cannot be read, or is something else.
    """
    try:
        text = decode_text(file.read_bytes())[0]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file} cannot be read as a table of tags ({reason}). Download it again.") from None
    rows = list(_csv_rows(file, text) if file.suffix.lower() == ".csv" else _json_rows(file, text))
    if not rows:
        raise CheckpointError(f"{file} has no tags. Download it again.")
    return _with_known_categories(file, rows)


def _with_known_categories(file: Path, rows: Iterable[tuple[str, str]]) -> tuple[Label, ...]:
    labels: list[Label] = []
    unknown: Counter[str] = Counter()
    for name, category in rows:
        known = _NUMBERS.get(category, category.lower())
        if known not in CATEGORIES:
            unknown[category] += 1
            known = "general"
        labels.append(Label(name, known))
    for category, number in unknown.items():
        logger.warning("%s: %d tags of the unknown category %r are taken as general tags", file, number, category)
    return tuple(labels)


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or ()
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise CheckpointError(
            f"{file} has no column {' and no column '.join(missing)}, only {', '.join(columns) or 'nothing'}. "
            "Take the selected_tags.csv that belongs to the model."
        )
    try:
        for row in reader:
            name, category = ((row[column] or "").strip() for column in _COLUMNS)
            if not name or not category.isdigit():
                raise CheckpointError(
                    f"{file}, line {reader.line_num}: needs a name and a number as category, got {name!r} and "
                    f"{category!r}. Download it again."
                )
            yield name, category
    except csv.Error as error:
        raise CheckpointError(f"{file}, line {reader.line_num}: is no CSV ({error}). Download it again.") from None


def _json_rows(file: Path, text: str) -> list[tuple[str, str]]:
    try:
        content = parse_json(text, [])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is no JSON ({': '.join(describe_fault(error))}). Download it again.") from None
    try:
        rows = dict(_json_items(content))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f'{file} is no table of tags like {{"0": {{"tag": "1girl", "category": "General"}}}}. Take the file that '
            "belongs to the model."
        ) from None
    gaps = [index for index in range(len(rows)) if index not in rows]
    if gaps:
        raise CheckpointError(f"{file} has no tag of index {gaps[0]}, but greater ones. Download it again.")
    return [rows[index] for index in range(len(rows))]


def _json_items(content: Any) -> Iterator[tuple[int, tuple[str, str]]]:
    """(index, (name, category)); raises KeyError, TypeError and the like where it is something else."""
    if "idx_to_tag" in content:
        categories = content["tag_to_category"]
        table = {index: {"tag": name, "category": categories[name]} for index, name in content["idx_to_tag"].items()}
    else:
        table = content
    for index, entry in table.items():
        name, category = entry["tag"].strip(), entry["category"].strip()
        if not name:
            raise ValueError("a tag without name")
        yield int(index), (name, category)
