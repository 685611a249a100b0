"""One function over many small files, in threads where that pays.

Threads wait for a slow drive together. On a fast one they would only wait for each other, as Python runs one at a
time; so they are called in when waiting is seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CHUNK = 64  # files handed to a thread at once
WORTH_A_BAR = 1000  # files
SLOW = 1e-4  # seconds of waiting for a file

_File = TypeVar("_File")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_files(
    function: Callable[[_File], _Result], paths: Sequence[_File], *, num_threads: int | None = None, title: str = ""
) -> list[_Result]:
    """The function's results in the order of `paths`.

    Args:
        function: Must not raise what the caller cannot handle: the first exception ends it all.
        paths: Files, or what names them.
        num_threads: How many to use whatever the drive is like; None lets the drive decide.
        title: Of a bar, which shows where it takes more than seconds; "" for none.
    """
    if not title or len(paths) < WORTH_A_BAR:
        return [result for chunk in _chunks(function, paths, num_threads) for result in chunk]
    from tqdm import tqdm

    results: list[_Result] = []
    with tqdm(total=len(paths), desc=title, delay=2, disable=None) as bar:
        for chunk in _chunks(function, paths, num_threads):
            results += chunk
            bar.update(len(chunk))
    return results


def _chunks(
    function: Callable[[_File], _Result], paths: Sequence[_File], num_threads: int | None
) -> Iterator[list[_Result]]:
    """Results of a few files at a time."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    while num_threads is None and chunks:
        start, computing = time.perf_counter(), time.thread_time()
        chunk = chunks.pop(0)
        yield [function(path) for path in chunk]
        waiting = time.perf_counter() - start - (time.thread_time() - computing)
        if waiting > SLOW * len(chunk):
            num_threads = min(16, 2 + 2 * (os.cpu_count() or 1))
    if num_threads == 1:
        for chunk in chunks:
            yield [function(path) for path in chunk]
    elif chunks:
        with ThreadPoolExecutor(num_threads) as threads:
            yield from threads.map(lambda chunk: [function(path) for path in chunk], chunks)
