"""What the doctor mends: files moved aside, texts saved again, endings renamed. Nothing is deleted or overwritten.

What is moved, and what was before a text was saved again, lies in `.set_aside` beside the file, a folder that no
training reads. Its `fixed.jsonl` has a line for each change, from which it can be undone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from library.data.files.quarantine import free_place
from library.data.files.text_files import decode_text
from library.errors import OutputError
from library.tensorfile import write_atomically

FOLDER = ".set_aside"  # names with a dot are never scanned
LOG = "fixed.jsonl"

Action = Literal["set aside", "saved as UTF-8", "renamed"]


@dataclass(frozen=True)
class Remedy:
    """One change that is safe and can be undone.

    Attributes:
        action: What is done.
        path: The file.
        target: What it is renamed to.
        encoding: What a text is in that does not say it itself.
    """

    action: Action
    path: Path
    target: Path | None = None
    encoding: str | None = None


class Mended(NamedTuple):
    """A change that was made.

    Attributes:
        path: What the file was.
        place: Where it is now; of a text that was saved again, where the former one is.
    """

    action: Action
    path: Path
    place: Path


def mend(remedies: Iterable[Remedy]) -> list[Mended]:
    """Make the changes; each file once, and those that are gone are passed over.

    Raises:
        OutputError: A file cannot be changed. What was done before stays done, and is in the log.
    """
    done = []
    distinct = {remedy.path: remedy for remedy in reversed(tuple(remedies))}  # the first of a file counts
    for remedy in reversed(distinct.values()):
        if not remedy.path.is_file():
            continue
        try:
            place = _DO[remedy.action](remedy)
            mended = Mended(remedy.action, remedy.path, place)
            _note(mended)
        except OSError as error:
            raise OutputError(
                f"{remedy.path} cannot be {remedy.action} ({error.strerror or error}). Make its folder writable, or "
                "leave out --fix."
            ) from None
        done.append(mended)
    return done


def _set_aside(remedy: Remedy) -> Path:
    place = _place_aside(remedy.path)
    os.rename(remedy.path, place)
    return place


def _save_as_utf8(remedy: Remedy) -> Path:
    """The text with its line ends, as UTF-8 without mark; the former file is kept aside."""
    text, _ = decode_text(remedy.path.read_bytes(), remedy.encoding)
    content = text.encode("utf-8")
    kept = _place_aside(remedy.path)
    shutil.copy2(remedy.path, kept)

    def write(place: Path) -> None:
        place.write_bytes(content)

    write_atomically(remedy.path, write, len(content))
    return kept


def _rename(remedy: Remedy) -> Path:
    target = remedy.target
    assert target is not None
    if target.exists() and not target.samefile(remedy.path):  # where letter case is no difference, it is the file
        raise FileExistsError(None, f"{target.name} is there already")
    os.rename(remedy.path, target)
    return target


_DO: dict[Action, Callable[[Remedy], Path]] = {
    "set aside": _set_aside,
    "saved as UTF-8": _save_as_utf8,
    "renamed": _rename,
}


def _place_aside(path: Path) -> Path:
    folder = path.parent / FOLDER
    folder.mkdir(exist_ok=True)
    return free_place(folder / path.name)


def _note(mended: Mended) -> None:
    """A line of the log."""
    folder = mended.path.parent / FOLDER
    folder.mkdir(exist_ok=True)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "action": mended.action,
        "from": mended.path.name,
        "to": os.path.relpath(mended.place, mended.path.parent).replace(os.sep, "/"),
    }
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
