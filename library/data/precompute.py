"""Filling caches: the only writer of cache entries.

Decoding, encoding and writing overlap; several processes share the batches and never make the same entry.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from library.data.cache import TensorCache
from library.log import get_logger

if TYPE_CHECKING:
    from torch import Tensor

logger = get_logger(__name__)

NUM_LOADERS = 2  # threads that decode ahead
NUM_AHEAD = 4  # batches that may be decoded and wait
NUM_UNWRITTEN = 4  # encoded batches that may wait to be written

Ids = Sequence[str]


@dataclass(frozen=True)
class FillReport:
    """What filling a cache came to.

    Attributes:
        num_made: Entries that this process made.
        num_kept: Entries that were valid before.
        reasons: Why entries had to be made, over all processes: {reason: how many}.
    """

    num_made: int
    num_kept: int
    reasons: Mapping[str, int]


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
) -> FillReport:
    """Make entries and write them.

    Of entries with the same content the first is encoded and written for all. Entries in memory are made by every
    process, files by one. All processes must pass the same batches: they call `cache.check()` first and wait for each
    other before anyone fills, and again before anyone reads.

    Args:
        cache: Gets the entries.
        batches: Ids that can be encoded together.
        load: Gets the inputs of a batch, in a thread of its own, ahead of their use.
        encode: Turns them into the tensors of every entry, without batch axis. Runs in this thread.
        rank: Of this process.
        num_processes: That share the batches.
        progress: Show a bar, on the first process.
        what: Is made, for the log.
        reasons: What `cache.check()` gave; by default it is asked again.

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
    distinct, same_content = _without_twins(cache, batches)
    mine = distinct if cache.in_memory else distinct[rank::num_processes]
    num_made = sum(len(same_content[entry_id]) for batch in mine for entry_id in batch)
    with _bar(what, num_made, is_shown=progress and rank == 0) as bar:
        _make(cache, same_content, _loaded_ahead(mine, load), encode, bar)
    return FillReport(num_made, len(cache) - len(wanted), dict(counts))


def _make(
    cache: TensorCache,
    same_content: Mapping[str, Ids],
    loaded: Iterable[tuple[Ids, Any]],
    encode: Callable[[Ids, Any], Sequence[Mapping[str, Tensor]]],
    bar: Any,
) -> None:
    """Encode what is loaded and write it in a thread, for all entries of the same content."""

    def write(ids: Ids, tensors: Sequence[Mapping[str, Tensor]]) -> None:
        for entry_id, own in zip(ids, tensors, strict=True):
            is_file = cache[entry_id].path is not None  # in memory the same content is kept once
            for twin in same_content[entry_id] if is_file else [entry_id]:
                cache.write(twin, own)

    unwritten: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for ids, inputs in loaded:
            unwritten.append(writer.submit(write, ids, encode(ids, inputs)))
            if len(unwritten) > NUM_UNWRITTEN:
                unwritten.popleft().result()
            bar.update(sum(len(same_content[entry_id]) for entry_id in ids))
        for writing in unwritten:
            writing.result()


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


def _loaded_ahead(batches: Sequence[Ids], load: Callable[[Ids], Any]) -> Iterator[tuple[Ids, Any]]:
    """Every batch with its inputs, in order; a few are loaded ahead in threads."""
    remaining = iter(batches)
    loaders = ThreadPoolExecutor(NUM_LOADERS)
    try:
        ahead = deque((batch, loaders.submit(load, batch)) for batch in islice(remaining, NUM_AHEAD))
        while ahead:
            batch, loading = ahead.popleft()
            inputs = loading.result()
            ahead.extend((following, loaders.submit(load, following)) for following in islice(remaining, 1))
            yield batch, inputs
    finally:
        loaders.shutdown(cancel_futures=True)


def _bar(what: str, total: int, *, is_shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, disable=not is_shown, dynamic_ncols=True)
