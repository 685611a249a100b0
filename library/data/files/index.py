"""What is remembered of pictures between runs, so that a second start opens only those that are new or have changed.

One small JSON file for each folder of pictures. What it says of a picture holds while the file's size and times of
change are the same. Losing it costs time and nothing else, so every fault of it is survived.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from library.data.files.headers import PictureHeader
from library.log import get_logger
from library.records import Size
from library.tensorfile import user_cache_dir

logger = get_logger(__name__)

VERSION = 2

_KINDS = (str, bool, bool, *[int] * 7)

FileState = tuple[int, int, int]  # bytes, times of change in ns: of the content, as told by programs, and of anything


def file_state(path: Path) -> FileState:
    """What tells whether a file is still the same.

    Raises:
        OSError: The file is gone or cannot be asked about.
    """
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns  # Windows has the time of creation there: it does no harm


class _Entry(NamedTuple):
    """What is known of one file."""

    state: FileState
    header: PictureHeader
    is_sound: bool = False

    def to_row(self) -> list[object]:
        header = self.header
        shown = (*header.size, header.orientation, header.frames, header.mode, header.has_alpha)
        return [*self.state, *shown, self.is_sound]


class _Folder:
    """The entries of one folder, by file name."""

    def __init__(self, entries: dict[str, _Entry]) -> None:
        self.entries = entries
        self.is_changed = False
        self.gone: set[str] = set()


class PictureIndex:
    """Headers of pictures, and whether their pixels have been decoded without fault. See the module's text.

    Not for use by several threads at once.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._folders: dict[str, _Folder] = {}

    @classmethod
    def open(cls, folder: Path | None = None) -> PictureIndex:
        """The index whose files lie in `folder`; None takes the user's cache folder. Nothing is read yet."""
        return cls(user_cache_dir() / "index" if folder is None else Path(folder))

    def header(self, path: Path, state: FileState) -> PictureHeader | None:
        """What is known of a file in this state."""
        folder, name = _split(path)
        entry = self._folder(folder).entries.get(name)
        return entry.header if entry is not None and entry.state == state else None

    def remember(self, path: Path, state: FileState, header: PictureHeader) -> None:
        """Keep what a file's header said."""
        parent, name = _split(path)
        folder = self._folder(parent)
        folder.entries[name] = _Entry(state, header)
        folder.is_changed = True

    def is_sound(self, path: Path, state: FileState) -> bool:
        """Whether the file was decoded without fault in this state."""
        folder, name = _split(path)
        entry = self._folder(folder).entries.get(name)
        return entry is not None and entry.is_sound and entry.state == state

    def remember_sound(self, path: Path, state: FileState) -> None:
        """Keep that a file can be decoded; nothing happens where its header is not known in this state."""
        parent, name = _split(path)
        folder = self._folder(parent)
        entry = folder.entries.get(name)
        if entry is not None and entry.state == state and not entry.is_sound:
            folder.entries[name] = _Entry(state, entry.header, is_sound=True)
            folder.is_changed = True

    def forget(self, path: Path) -> None:
        """Look at a file again next time: what its header said has turned out wrong."""
        parent, name = _split(path)
        folder = self._folder(parent)
        if folder.entries.pop(name, None) is not None:
            folder.gone.add(name)
            folder.is_changed = True

    def keep_only(self, parent: Path, names: Iterable[str]) -> None:
        """Forget the files of a folder that are not among `names`."""
        folder = self._folder(_split(parent / "any")[0])
        gone = folder.entries.keys() - set(names)
        for name in gone:
            del folder.entries[name]
        folder.gone |= gone
        folder.is_changed = folder.is_changed or bool(gone)

    def save(self) -> None:
        """Write what has changed. What another process wrote meanwhile is kept, unless it is about the same file."""
        for parent, folder in self._folders.items():
            if not folder.is_changed:
                continue
            others = _read(self._file(parent), parent)
            merged = {name: entry for name, entry in others.items() if name not in folder.gone}
            for name, entry in folder.entries.items():
                other = merged.get(name)
                if other is None or other.state != entry.state or entry.is_sound:
                    merged[name] = entry
            folder.entries, folder.is_changed, folder.gone = merged, False, set()
            try:
                _write(self._file(parent), parent, merged)
            except OSError as error:
                logger.debug("the index of pictures cannot be written to %s (%s)", self._place, error)
                return

    def _folder(self, parent: str) -> _Folder:
        folder = self._folders.get(parent)
        if folder is None:
            folder = self._folders[parent] = _Folder(_read(self._file(parent), parent))
        return folder

    def _file(self, parent: str) -> Path:
        digest = hashlib.blake2b(os.fsencode(os.path.abspath(parent)), digest_size=12).hexdigest()
        return self._place / f"{digest}.json"


def _split(path: Path) -> tuple[str, str]:
    """Folder and name, as `os.path.split` gives them but faster; the current folder is "."."""
    folder, _, name = os.fspath(path).rpartition(os.sep)
    if not folder or folder[-1] == ":":
        folder = os.path.split(path)[0] or "."
    return folder, name


def _read(file: Path, parent: str) -> dict[str, _Entry]:
    """The entries of a folder; none where there is no file, or one that is of no use."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.debug("the index of pictures cannot be read from %s (%s)", file, error)
        return {}
    try:
        content = json.loads(data)
        if content["version"] != VERSION or content["folder"] != os.path.abspath(parent):
            raise ValueError("another version or folder")
        return {name: _entry(row) for name, row in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        logger.info("%s: the index of pictures cannot be used (%s) and is made again", parent, file)
        return {}


def _entry(row: list[Any]) -> _Entry:
    """An entry from its row.

    Raises:
        ValueError, TypeError: The row is of another form.
    """
    size, written, changed, width, height, orientation, frames, mode, has_alpha, is_sound = row
    kinds = (type(mode), type(has_alpha), type(is_sound), *map(type, row[:7]))
    if kinds != _KINDS or min(width, height, orientation, frames) < 1:
        raise ValueError(f"row {row}")
    header = PictureHeader(Size(width, height), orientation, frames, mode, has_alpha)
    return _Entry((size, written, changed), header, is_sound)


def _write(file: Path, parent: str, entries: dict[str, _Entry]) -> None:
    """Put a complete file in place. It is not flushed to the disk: a torn one is noticed and made again."""
    rows = {name: entry.to_row() for name, entry in sorted(entries.items())}
    content = {"version": VERSION, "folder": os.path.abspath(parent), "files": rows}
    temporary = file.with_name(f".{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
