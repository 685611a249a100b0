"""What the doctor mends: files moved aside, texts saved again, endings renamed. Nothing is deleted or overwritten.

What is moved, and what was before a text was saved again, lies in `.set_aside` beside the file, a folder that no
training reads. Its `fixed.jsonl` has a line for each change, from which it can be undone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from library.data.files.quarantine import free_place
from library.data.files.text_files import decode_text
from library.errors import OutputError
from library.tensorfile import write_bytes

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
            done.append(_mend_one(remedy))
        except OSError as error:
            raise OutputError(
                f"{remedy.path} cannot be {remedy.action} ({error.strerror or error}). Make its folder writable, or "
                "leave out --fix."
            ) from None
    return done


def _mend_one(remedy: Remedy) -> Mended:
    """First the file is in its new place too, then it is in the log, and then its old name goes: wherever this is
    broken off, nothing is lost and no change is missing in the log."""
    content = None
    if remedy.action == "saved as UTF-8":
        content = decode_text(remedy.path.read_bytes(), remedy.encoding)[0].encode("utf-8")
    place = remedy.target or _free_place_aside(remedy.path)
    is_same = place.exists() and place.samefile(remedy.path)  # where letter case is no difference, it is the file
    if not is_same:
        _copy(remedy.path, place, is_link_kept=content is None)
    mended = Mended(remedy.action, remedy.path, place)
    _note(mended)
    if content is not None:
        write_bytes(remedy.path, content)
    elif is_same:
        remedy.path.rename(place)
    else:
        remedy.path.unlink()
    return mended


def _copy(path: Path, place: Path, *, is_link_kept: bool) -> None:
    """Have a file in a second place, as a hard link where that can be.

    Args:
        path: The file.
        place: Where nothing may be yet.
        is_link_kept: A symbolic link is itself what is kept, not the file that it leads to.

    Raises:
        FileExistsError: Something is there already.
    """
    try:
        if is_link_kept or not path.is_symlink():
            os.link(path, place, follow_symlinks=False)
            return
    except FileExistsError:
        raise FileExistsError(None, f"{place.name} is there already") from None
    except (OSError, NotImplementedError):
        pass  # not every drive has links: then the file is copied
    with place.open("xb"):  # from here on the name is ours
        pass
    try:
        if is_link_kept and path.is_symlink():
            place.unlink()
        shutil.copy2(path, place, follow_symlinks=not is_link_kept)
    except OSError:
        place.unlink(missing_ok=True)
        raise


def _free_place_aside(path: Path) -> Path:
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
