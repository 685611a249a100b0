"""Pictures in batches, decoded by threads while the batch before is worked on. Broken ones are told and left out.

Decoders let go of Python's lock, so threads decode at the same time; at most a few batches wait.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from library.data.findings import Fault
from library.errors import DatasetError

BATCHES_AHEAD = 2

Prepared = TypeVar("Prepared")


def decoded_batches(
    paths: Sequence[Path],
    prepare: Callable[[Path], Prepared],
    *,
    batch_size: int,
    num_threads: int | None = None,
    on_fault: Callable[[Fault], None],
) -> Iterator[list[tuple[Path, Prepared]]]:
    """Batches of (path, what `prepare` made of it), in the order of `paths`; all but the last are full.

    Args:
        paths: The pictures.
        prepare: Decodes one; raises DatasetError where it cannot be used. It is called in threads.
        batch_size: Pictures of a batch.
        num_threads: How many decode; None takes one for each processor, at most 8. 0 decodes when a batch is asked for.
        on_fault: Gets what is wrong with a picture that is left out.
    """
    batch: list[tuple[Path, Prepared]] = []
    for path, result in _results(paths, prepare, batch_size, num_threads):
        if isinstance(result, DatasetError):
            on_fault(Fault(path, _without_path(result, path)))
            continue
        batch.append((path, result))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _results(
    paths: Sequence[Path], prepare: Callable[[Path], Prepared], batch_size: int, num_threads: int | None
) -> Iterator[tuple[Path, Prepared | DatasetError]]:
    def attempt(path: Path) -> Prepared | DatasetError:
        try:
            return prepare(path)
        except DatasetError as error:
            return error

    if num_threads == 0:
        yield from ((path, attempt(path)) for path in paths)
        return
    number = num_threads or min(8, os.cpu_count() or 1)
    waiting: deque[tuple[Path, Future[Prepared | DatasetError]]] = deque()
    rest = iter(paths)
    pool = ThreadPoolExecutor(number, thread_name_prefix="decode")
    try:
        for path in islice(rest, max(number, BATCHES_AHEAD * batch_size)):
            waiting.append((path, pool.submit(attempt, path)))
        while waiting:
            path, future = waiting.popleft()
            result = future.result()
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(attempt, following)))
            yield path, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _without_path(error: DatasetError, path: Path) -> str:
    return str(error).removeprefix(f"{path} ").removesuffix(".")
