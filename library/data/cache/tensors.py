"""Cached encoder outputs: which entries are valid, reading and writing.

An entry is one safetensors file whose header states everything the tensors depend on. It is valid only if that
header equals the one that would be written now; whatever else lies at its place is made again. Entries without a
path live in memory behind the same interface.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from library.data.cache.entry import CacheEntry, difference, fits, holds
from library.data.cache.entry_file import (
    CHECKSUM,
    DamagedFile,
    Packed,
    is_finite,
    pack,
    read_entry,
    read_entry_header,
    stated_rows,
    unpack,
    verify,
    without_content,
    write_entry,
)
from library.data.files.patience import read_patiently
from library.errors import CheckpointError, DatasetError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

USUAL_ADVICE = "Give a folder for them with --cache_dir, or cache in memory: leave out the _to_disk options"
_CHUNK = 64  # entries that a thread checks at a time


class DamagedEntry(DatasetError):
    """A cache file that was valid at the start cannot be used now.

    Attributes:
        path: The file. If it is ours and its content is wrong, it is gone already: the next start makes it again.
    """

    path: Path

    @classmethod
    def at(cls, path: Path, reason: str) -> DamagedEntry:
        """The error of one file."""
        error = cls(f"{path} cannot be read ({reason}). Start again, and it is made anew.")
        error.path = path
        return error


class ForeignEntry(Protocol):
    """A file of another program that stands for one of ours."""

    @property
    def path(self) -> Path: ...

    def read(self) -> dict[str, Tensor]:
        """The tensors as ours would be.

        Raises:
            DamagedFile: They cannot be used.
            OSError: The file cannot be read.
        """


class TensorCache:
    """Entries by id.

    Args:
        entries: In the order of the records, where there are records; the same entry may occur several times.
        advice: What the user can do where files cannot be written; no full stop.
    """

    def __init__(self, entries: Sequence[CacheEntry], *, advice: str = USUAL_ADVICE) -> None:
        self.entries = tuple(entries)
        self._advice = advice
        self._by_id = {entry.id: entry for entry in self.entries}
        self._memory: dict[str, Packed] = {}  # by content
        self._foreign: dict[str, ForeignEntry] = {}
        self._verified: set[str] = set()

    def __getitem__(self, entry_id: str) -> CacheEntry:
        return self._by_id[entry_id]

    def __len__(self) -> int:
        """Number of different entries."""
        return len(self._by_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the different entries, in their order."""
        return tuple(self._by_id)

    @property
    def in_memory(self) -> bool:
        """Whether any entry lives in memory only, so that every process needs all of them."""
        return any(entry.path is None for entry in self._by_id.values())

    def adopt(self, foreign: Mapping[str, ForeignEntry]) -> None:
        """Let files of another program, by entry id, stand for entries that have no file of their own."""
        self._foreign.update(foreign)

    def foreign_path(self, entry_id: str) -> Path | None:
        """The file of another program that stands for an entry, if there is one."""
        foreign = self._foreign.get(entry_id)
        return None if foreign is None else foreign.path

    def check(self) -> dict[str, str]:
        """{id: reason} of the entries that have to be made, in their order. Reads headers only, without torch."""
        entries = [entry for entry in self._by_id.values() if entry.id not in self._foreign]
        present = _present({entry.path.parent for entry in entries if entry.path is not None})

        def faults(chunk: Sequence[CacheEntry]) -> list[str | None]:
            return [self._fault(entry, present) for entry in chunk]

        chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            reasons = [reason for found in threads.map(faults, chunks) for reason in found]
        return {entry.id: reason for entry, reason in zip(entries, reasons, strict=True) if reason is not None}

    def probe(self, ids: Iterable[str]) -> None:
        """Make sure that the entries can be written, before anything is computed.

        Raises:
            OutputError: Names the folder.
        """
        paths = (self._by_id[entry_id].path for entry_id in ids)
        for folder in sorted({path.parent for path in paths if path is not None}):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise OutputError(
                    f"{folder}: cache files cannot be written there ({error.strerror or error}). {self._advice}."
                ) from None

    def write(self, entry_id: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of an entry, in the precision they have, without batch axis.

        Raises:
            CheckpointError: A tensor has NaN or infinite values; the picture or caption is named.
            OutputError: The file cannot be written.
        """
        entry = self._by_id[entry_id]
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert fits(entry, shapes), f"{entry.about}: {shapes} does not fit {entry.names} of {entry.size}"
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise CheckpointError(
                    f"{entry.about}: the encoder gave NaN or infinite values for {name}. Run it in a wider precision "
                    "(bf16 or float32; --no_half_vae for the VAE), or check its file."
                )
        if entry.path is None:
            self._memory[entry.content] = _copy(pack(tensors))
        else:
            write_entry(entry.path, tensors, entry.header)
            self._foreign.pop(entry_id, None)

    def read(self, entry_id: str) -> dict[str, Tensor]:
        """The tensors of a valid entry. The first reading in a process also compares the checksum.

        Raises:
            DamagedEntry: The file has vanished, is damaged, or another run has replaced it.
            DatasetError: Nothing was made for an entry in memory.
        """
        entry = self._by_id[entry_id]
        if entry.path is None:
            if entry.content not in self._memory:
                raise DatasetError(f"{entry.about}: nothing is cached for it. Start again.")
            return unpack(self._memory[entry.content])
        foreign = self._foreign.get(entry_id)
        path = entry.path if foreign is None else foreign.path
        try:
            return read_patiently(partial(self._read_file, entry) if foreign is None else foreign.read, path)
        except FileNotFoundError:
            reason = "it is gone"
        except OSError as error:
            reason = error.strerror or str(error)
        except DamagedFile as error:
            reason = str(error)
        raise DamagedEntry.at(path, reason)

    def _read_file(self, entry: CacheEntry) -> dict[str, Tensor]:
        assert entry.path is not None
        try:
            metadata, packed = read_entry(entry.path)
            is_other = not holds(without_content(metadata), entry.header)
            if not is_other and entry.id not in self._verified:
                verify(metadata, packed)
        except DamagedFile:
            self._discard(entry)
            raise
        if is_other:
            raise DamagedFile("another run has replaced it")
        self._verified.add(entry.id)
        return {name: tensor for name, tensor in unpack(packed).items() if not entry.names or name in entry.names}

    def _discard(self, entry: CacheEntry) -> None:
        """Remove a file that cannot be used, if a check of headers would take it for valid again."""
        assert entry.path is not None
        if self._fault(entry, _present({entry.path.parent})) is None:
            with contextlib.suppress(OSError):
                entry.path.unlink(missing_ok=True)

    def _fault(self, entry: CacheEntry, present: Mapping[Path, frozenset[str]]) -> str | None:
        """Why an entry has to be made, or None."""
        if entry.path is None:
            return None if entry.content in self._memory else "new"
        if os.path.normcase(entry.path.name) not in present[entry.path.parent]:
            return "new"
        try:
            metadata, shapes = read_entry_header(entry.path)
        except (OSError, DamagedFile):
            return "unreadable"
        if not holds(found := without_content(metadata), entry.header):
            return difference(entry, found)
        return None if _is_whole(entry, metadata, shapes) else "damaged"


def stored_precision(tensor: Tensor) -> Tensor:
    """What a cache keeps of an encoder's output: bfloat16 where it ran in fp16, which has too little range.

    Live outputs of frozen encoders go through the same, so that a cache changes nothing.
    """
    import torch

    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float16 else tensor


def _present(folders: Iterable[Path]) -> dict[Path, frozenset[str]]:
    """Names of all files in the folders; a listing of a folder is far cheaper than asking for each file."""
    found = {}
    for folder in folders:
        try:
            found[folder] = frozenset(os.path.normcase(name) for name in os.listdir(folder))
        except OSError:
            found[folder] = frozenset()
    return found


def _is_whole(entry: CacheEntry, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        stated_rows(metadata)
    except (ValueError, TypeError, AttributeError):
        return False
    return CHECKSUM in metadata and fits(entry, shapes)


def _copy(packed: Packed) -> Packed:
    """In memory of its own, and fit for training even if it was made in inference mode."""
    import torch

    with torch.inference_mode(False):
        own = {name: tensor.to("cpu", copy=True) for name, tensor in packed.tensors.items()}
    return Packed(own, packed.full_rows)
