"""Filling caches: the only writer of cache entries.

Loading (which decodes and resizes pictures), encoding and writing are three stages that run at the same time. Several
processes share the batches and never make the same entry. Files appear whole or not at all, so a filling that was
killed is gone on with by starting it again.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from library.data.cache import TensorCache
from library.errors import DatasetError
from library.log import get_logger

if TYPE_CHECKING:
    from torch import Tensor

logger = get_logger(__name__)

MAX_LOADERS = 16  # threads that decode ahead
NUM_AHEAD = 2  # batches that may be decoded and wait, beside one for each loader
NUM_WRITERS = 4  # threads; most of writing is waiting for the disk
NUM_UNWRITTEN = 16  # encoded batches that may wait to be written

Ids = Sequence[str]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FillReport:
    """What filling a cache came to, in this process.

    Attributes:
        num_made: Entries that were made.
        num_kept: Entries that were valid before.
        reasons: Why entries had to be made, over all processes: {reason: how many}.
        num_encoded: What went through the encoder: entries of the same content once.
        num_bytes: Size of the files that were written.
        seconds: From the first load to the last write.
    """

    num_made: int
    num_kept: int
    reasons: Mapping[str, int]
    num_encoded: int = 0
    num_bytes: int = 0
    seconds: float = 0.0


class _Loaded(NamedTuple):
    """Inputs of a batch, and what could not be loaded."""

    ids: Ids
    inputs: Any
    faults: Mapping[str, DatasetError]


def fill_cache(
    cache: TensorCache,
    batches: Sequence[Ids],
    load: Callable[[Ids], Any],
    encode: Callable[[Ids, Any], Sequence[Mapping[str, Tensor]]],
    *,
    rank: int = 0,
    num_processes: int = 1,
    progress: bool = True,
    what: str = "latents",
    reasons: Mapping[str, str] | None = None,
    num_encoders: int = 1,
    on_fault: Callable[[str, DatasetError], None] | None = None,
) -> FillReport:
    """Make entries and write them.

    Of entries with the same content the first is encoded and written for all. Entries in memory are made by every
    process, files by one. All processes must pass the same batches: they call `cache.check()` first and wait for each
    other before anyone fills, and again before anyone reads.

    Args:
        cache: Gets the entries.
        batches: Ids that can be encoded together.
        load: Gets the inputs of a batch, in a thread of its own, ahead of their use.
        encode: Turns them into the tensors of every entry, without batch axis. Runs in this thread, unless there are
            several encoders.
        rank: Of this process.
        num_processes: That share the batches.
        progress: Show a bar, on the first process.
        what: Is made, for the log.
        reasons: What `cache.check()` gave; by default it is asked again.
        num_encoders: Batches that are encoded at once, each in a thread.
        on_fault: Told the id and the error of every entry whose inputs cannot be loaded, in this thread; the others
            are made. By default the first such error is raised.

    Raises:
        DatasetError, CheckpointError: From `load` and `encode`, or a tensor is not finite.
        OutputError: A folder cannot be written; found before anything is encoded.
    """
    wanted = {entry_id for batch in batches for entry_id in batch}
    found = cache.check() if reasons is None else reasons
    counts = Counter(found.get(entry_id, "new") for entry_id in wanted)
    cache.probe(wanted)
    if wanted:
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{count} {reason}" for reason, count in ranked)
        logger.info("%s: making %d of %d (%s)", what, len(wanted), len(cache), listed)
    mine, same_content = own_batches(cache, batches, rank=rank, num_processes=num_processes)
    start = time.perf_counter()
    stages = _Stages(cache, same_content, load, encode, on_fault)
    is_pictures = _decodes(cache, mine)
    bar = _bar(what, is_pictures, _num_entries(mine, same_content), is_shown=progress and rank == 0)
    with _single_threaded_pixels(is_on=is_pictures), bar:
        made = _make(stages, mine, num_encoders=num_encoders, bar=bar)
    seconds = time.perf_counter() - start
    num_bytes = sum(path.stat().st_size for entry_id in made if (path := cache[entry_id].path) is not None)
    num_encoded = sum(entry_id in same_content for entry_id in made)
    return FillReport(len(made), len(cache) - len(wanted), dict(counts), num_encoded, num_bytes, seconds)


def own_batches(
    cache: TensorCache, batches: Sequence[Ids], *, rank: int, num_processes: int
) -> tuple[list[list[str]], dict[str, list[str]]]:
    """What one process gives to `encode` for these batches, in this order; and {id in it: all ids of its content}."""
    distinct, same_content = _without_twins(cache, batches)
    return distinct if cache.in_memory else distinct[rank::num_processes], same_content


def num_processors() -> int:
    """Processors that this process may use: those of the machine that it is allowed, shared with the processes that
    were launched beside it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or "1")
    return max(1, allowed // beside)


@dataclass(frozen=True)
class _Stages:
    """What happens to a batch, one after the other."""

    cache: TensorCache
    same_content: Mapping[str, Ids]
    load: Callable[[Ids], Any]
    encode: Callable[[Ids, Any], Sequence[Mapping[str, Tensor]]]
    on_fault: Callable[[str, DatasetError], None] | None

    def loaded(self, ids: Ids) -> _Loaded:
        """The inputs of a batch; where faults do not end the filling, of what can be loaded of it."""
        try:
            return _Loaded(ids, self.load(ids), {})
        except DatasetError as error:
            if self.on_fault is None:
                raise
            if len(ids) == 1:
                return _Loaded((), None, {ids[0]: error})
        faults = {entry_id: error for entry_id in ids for error in self.loaded([entry_id]).faults.values()}
        sound = [entry_id for entry_id in ids if entry_id not in faults]
        return _Loaded(sound, self.load(sound) if sound else None, faults)

    def encoded(self, batch: _Loaded) -> tuple[Ids, Sequence[Mapping[str, Tensor]]]:
        """The tensors of a batch."""
        return batch.ids, self.encode(batch.ids, batch.inputs) if batch.ids else ()

    def written(self, batch: tuple[Ids, Sequence[Mapping[str, Tensor]]]) -> list[str]:
        """Write a batch for all entries of the same content, and name them."""
        made: list[str] = []
        for entry_id, own in zip(*batch, strict=True):
            is_file = self.cache[entry_id].path is not None  # in memory the same content is kept once
            twins = self.same_content[entry_id]
            for twin in twins if is_file else [entry_id]:
                self.cache.write(twin, own)
            made += twins
        return made

    def told(self, batches: Iterable[_Loaded]) -> Iterator[_Loaded]:
        """The batches as they are, while faults are passed on in the thread that asks."""
        for batch in batches:
            for entry_id, error in batch.faults.items():
                assert self.on_fault is not None
                self.on_fault(entry_id, error)
            yield batch


def _make(stages: _Stages, batches: Sequence[Ids], *, num_encoders: int, bar: Any) -> list[str]:
    """Send the batches through all stages; returns the ids of what was made."""
    made: list[str] = []
    num_loaders = min(MAX_LOADERS, num_processors()) if _decodes(stages.cache, batches) else 1
    loaders = ThreadPoolExecutor(num_loaders, "load")
    encoders = ThreadPoolExecutor(num_encoders, "encode")
    writers = ThreadPoolExecutor(NUM_WRITERS, "write")
    try:
        loaded = stages.told(_ahead(loaders, stages.loaded, batches, num_loaders + NUM_AHEAD))
        if num_encoders == 1:
            encoded: Iterator[Any] = map(stages.encoded, loaded)
        else:
            encoded = _ahead(encoders, stages.encoded, loaded, num_encoders)
        for ids in _as_done(writers, stages.written, encoded, NUM_UNWRITTEN):
            made += ids
            bar.update(len(ids))
    finally:
        loaders.shutdown(cancel_futures=True)
        encoders.shutdown(cancel_futures=True)
        writers.shutdown()  # what is encoded is kept
    return made


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """`work(item)` of every item, in order; `limit` of them are always under way."""
    remaining = iter(items)
    under_way: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(remaining, limit))
    while under_way:
        result = under_way.popleft().result()
        under_way.extend(pool.submit(work, item) for item in islice(remaining, 1))
        yield result


def _as_done(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """`work(item)` of every item, in order; items are not waited for as long as less than `limit` are under way."""
    under_way: deque[Future[Result]] = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        while under_way and (under_way[0].done() or len(under_way) >= limit):
            yield under_way.popleft().result()
    yield from (future.result() for future in under_way)


def _without_twins(cache: TensorCache, batches: Sequence[Ids]) -> tuple[list[list[str]], dict[str, list[str]]]:
    """The batches with one entry of each content, and {that entry: all entries of its content}."""
    first: dict[str, str] = {}
    same_content: dict[str, dict[str, None]] = {}  # used as ordered sets
    distinct = []
    for batch in batches:
        own = []
        for entry_id in batch:
            leader = first.setdefault(cache[entry_id].content, entry_id)
            if leader not in same_content:
                own.append(leader)
                same_content[leader] = {}
            same_content[leader][entry_id] = None
        if own:
            distinct.append(own)
    return distinct, {leader: list(twins) for leader, twins in same_content.items()}


def _num_entries(batches: Sequence[Ids], same_content: Mapping[str, Ids]) -> int:
    return sum(len(same_content[entry_id]) for batch in batches for entry_id in batch)


def _decodes(cache: TensorCache, batches: Sequence[Ids]) -> bool:
    """Whether the inputs are pictures, which take long to load."""
    return any(cache[entry_id].size is not None for batch in batches for entry_id in batch)


@contextmanager
def _single_threaded_pixels(*, is_on: bool) -> Iterator[None]:
    """Let OpenCV resize in the thread that asks: there is a loader for every processor already."""
    if not is_on:
        yield
        return
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _bar(what: str, is_pictures: bool, total: int, *, is_shown: bool) -> Any:
    """Shows how many are made, how many a second, and the time that is left."""
    from tqdm import tqdm

    unit = " images" if is_pictures else " captions"
    return tqdm(total=total, desc=what, unit=unit, disable=not is_shown, dynamic_ncols=True)
