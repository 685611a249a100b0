"""What a run has found so far, for a file that is written at its end: a run that is killed goes on where it was.

One line of JSON for each picture, in a file of its own for each process, beside the file that will be written. Lines of
other settings, of another model or of a picture that has changed since do not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from library.errors import OutputError

ENDING = ".part"


class Found(NamedTuple):
    """What a run has found of a picture.

    Attributes:
        tags: In their order.
        size: Width and height of the picture as it is seen, in pixels.
    """

    tags: tuple[str, ...]
    size: tuple[int, int]


class Journal:
    """Remembers what was found. Used in a `with`, which keeps the file open.

    Args:
        output: The file that will be written.
        identity: Of model and settings.
        rank: Of this process.
    """

    def __init__(self, output: Path, identity: str, rank: int = 0) -> None:
        self.output = output
        self.identity = identity
        self.path = output.with_name(f"{output.name}.{rank}{ENDING}")
        self._file: TextIO | None = None

    def files(self) -> list[Path]:
        """Those of all processes."""
        start, folder = f"{self.output.name}.", self.output.parent
        names = [path.name for path in folder.iterdir() if path.name.startswith(start) and path.name.endswith(ENDING)]
        ranks = {name: name[len(start) : -len(ENDING)] for name in names}
        return [folder / name for name in sorted(names) if ranks[name].isdigit()]

    def read(self, pictures: Mapping[str, Path]) -> dict[str, Found]:
        """What earlier starts of the same run have found, of those pictures that are as they were.

        Args:
            pictures: {name: path} of those that count.

        Raises:
            OutputError: A file of an earlier start cannot be read.
        """
        found: dict[str, Found] = {}
        for path in self.files():
            for line in _lines(path):
                entry = _entry(line)
                name = str(entry.get("name"))
                if entry.get("run") == self.identity and name in pictures and entry["file"] == _mark(pictures[name]):
                    width, height = entry["size"]
                    found[name] = Found(tuple(entry["tags"]), (width, height))
        return found

    def add(self, items: Iterable[tuple[str, Path, Found]]) -> None:
        """Remember (name, path, what was found) of pictures. They are on their way to the disk when this returns.

        Raises:
            OutputError: They cannot be written.
        """
        lines = [
            {"run": self.identity, "name": name, "file": _mark(path), "tags": found.tags, "size": found.size}
            for name, path, found in items
        ]
        try:
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
                self._file.write("\n")  # the last line of a run that was killed may have no end
            self._file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error}).") from None

    def remove(self) -> None:
        """Remove the files of all processes: what they hold is in the output."""
        for path in self.files():
            path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> Sequence[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path}: cannot be read ({reason}). Make it readable, or remove it to begin anew.") from None


def _entry(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it was cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _mark(path: Path) -> list[int]:
    """By which a changed picture is known."""
    try:
        status = path.stat()
    except OSError:
        return []  # it is gone, which is found when it is decoded
    return [status.st_size, status.st_mtime_ns]
