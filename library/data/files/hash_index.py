"""Hashes of pictures, remembered between runs while their files are the same; see `perceptual_hash.py`.

One small JSON file for each folder of pictures, beside those of `index.py`. Losing it costs time and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from library.data.files.index import FileState
from library.data.pixels.perceptual_hash import PictureHash
from library.log import get_logger
from library.tensorfile import user_cache_dir

logger = get_logger(__name__)

VERSION = 1

_Entries = dict[str, tuple[FileState, PictureHash]]  # by file name


class HashIndex:
    """What is remembered.

    Args:
        place: Folder of the files; None takes the user's cache folder.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._place = user_cache_dir() / "hashes" if place is None else place / "hashes"
        self._folders: dict[Path, _Entries] = {}
        self._changed: set[Path] = set()

    def get(self, path: Path, state: FileState) -> PictureHash | None:
        """The hash of a file in this state."""
        entry = self._entries(path.parent).get(path.name)
        return entry[1] if entry is not None and entry[0] == state else None

    def remember(self, path: Path, state: FileState, value: PictureHash) -> None:
        """Keep a hash."""
        self._entries(path.parent)[path.name] = (state, value)
        self._changed.add(path.parent)

    def save(self) -> None:
        """Write what has changed, without pictures that are gone; where that cannot be, nothing happens."""
        for folder in self._changed:
            kept = {name: entry for name, entry in self._folders[folder].items() if (folder / name).exists()}
            try:
                _write(self._file(folder), kept)
            except OSError as error:
                logger.debug("hashes of pictures cannot be written to %s (%s)", self._place, error)
        self._changed.clear()

    def _entries(self, folder: Path) -> _Entries:
        if folder not in self._folders:
            self._folders[folder] = _read(self._file(folder))
        return self._folders[folder]

    def _file(self, folder: Path) -> Path:
        digest = hashlib.blake2b(os.fsencode(os.path.abspath(folder)), digest_size=12).hexdigest()
        return self._place / f"{digest}.json"


def _read(file: Path) -> _Entries:
    """The entries of a folder; none where there is no file, or one that is of no use."""
    try:
        content = json.loads(file.read_bytes())
        if content["version"] != VERSION:
            return {}
        return {
            name: ((row[0], row[1], row[2]), PictureHash.from_bytes(base64.b64decode(row[3])))
            for name, row in content["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return {}


def _write(file: Path, entries: Mapping[str, tuple[FileState, PictureHash]]) -> None:
    """Put a complete file in place. It is not flushed to the disk: a torn one is noticed and made again."""
    rows = {name: [*state, base64.b64encode(own.to_bytes()).decode()] for name, (state, own) in entries.items()}
    temporary = file.with_name(f".{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"version": VERSION, "files": rows}), encoding="ascii")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
