"""Headers of many pictures, in threads: from the index what has not changed, from the files what is new."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from library.data.files.file_threads import map_files
from library.data.files.headers import PictureHeader, read_header
from library.data.files.index import FileState, PictureIndex, file_state
from library.data.files.patience import read_all_patiently, why_not_its_fault
from library.errors import DatasetError


class HeaderReader:
    """Reads each file once, however many subsets name it.

    Attributes:
        headers: Of all pictures read so far that are fine.
        problems: What is wrong with the others: follows the path, no full stop.
        unread: Why those cannot be read that may be fine, likewise: the drive or its rights are at fault.
    """

    def __init__(self, index: PictureIndex | None = None, num_threads: int | None = None) -> None:
        self.headers: dict[Path, PictureHeader] = {}
        self.problems: dict[Path, str] = {}
        self.unread: dict[Path, str] = {}
        self._index = index
        self._num_threads = num_threads

    def read(self, paths: Sequence[Path]) -> None:
        """Add files to `headers`, `problems` or `unread`."""
        seen = self.headers.keys() | self.problems.keys() | self.unread.keys()
        new = [path for path in dict.fromkeys(paths) if path not in seen]
        states = map_files(_state, new, num_threads=self._num_threads)
        unknown = []
        for path, state in zip(new, states, strict=True):
            known = self._index.header(path, state) if self._index and state else None
            if known is None:
                unknown.append((path, state))
            else:
                self.headers[path] = known
        unknown_paths = [path for path, _ in unknown]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd EXIF data
            found = read_all_patiently(_read, unknown_paths, num_threads=self._num_threads, title="looking at pictures")
        for (path, state), header in zip(unknown, found, strict=True):
            if isinstance(header, OSError):
                self.unread[path] = f"cannot be read ({header.strerror or header}); {why_not_its_fault(header)}"
            elif isinstance(header, str):
                self.problems[path] = header
            else:
                self.headers[path] = header
                if self._index and state:
                    self._index.remember(path, state, header)


def _state(path: Path) -> FileState | None:
    """The state of a file; None where it cannot be asked about. Reading it will say why."""
    try:
        return file_state(path)
    except OSError:
        return None


def _read(path: Path) -> PictureHeader | str | OSError:
    try:
        return read_header(path)
    except DatasetError as error:
        return str(error).removeprefix(f"{path} ")
    except OSError as error:
        return error
