"""Captions and tags into text files: whole or not at all, in a thread of their own while others are made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from library.tensorfile import write_bytes

WAITING = 256  # files that may wait to be written


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8 with a line break at its end, if it is not empty.

    Where `path` is a link, the file that it leads to is written. A file that is the same already is left alone.

    Raises:
        OutputError: It cannot be written; what was there is as it was.
    """
    data = (f"{text}\n" if text and not text.endswith("\n") else text).encode()
    if not _holds(path, data):
        write_bytes(path, data)


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file's content is known to be this; one that cannot be read is left to the writing."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


class TextWriter:
    """Writes text files in the background. Used in a `with`, at whose end all of them are written.

    An error of a file is raised by the next call, or at the end of the `with`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: list[Future[None]] = []

    def write(self, path: Path, text: str, write: Callable[[Path, str], None] = write_text) -> None:
        """Have a file written.

        Raises:
            OutputError: An earlier one could not be.
        """
        self._waiting.append(self._pool.submit(write, path, text))
        if len(self._waiting) >= WAITING:
            self._finish()
        else:
            self._check()

    def _check(self) -> None:
        while self._waiting and self._waiting[0].done():
            self._waiting.pop(0).result()

    def _finish(self) -> None:
        while self._waiting:
            self._waiting.pop(0).result()

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._finish()
