"""The hashes of a plan's pictures: from memory, or from decoding them in threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.files.hash_index import HashIndex
from library.data.files.index import FileState, PictureIndex, file_state
from library.data.files.soundness import WORTH_A_BAR
from library.errors import DatasetError
from library.records import ImageRecord

if TYPE_CHECKING:
    from library.data.pixels.perceptual_hash import PictureHash

SAVED_EVERY = 5000  # pictures


def hash_pictures(
    records: Sequence[ImageRecord], index: PictureIndex, memory: HashIndex, *, saved_every: int = SAVED_EVERY
) -> dict[Path, PictureHash]:
    """The hashes of all pictures that can be decoded; of a file that is the same as before the remembered one.

    Args:
        records: The pictures.
        index: Is told of what is decoded here that it is sound.
        memory: Of hashes.
        saved_every: After so many pictures both are saved, so that a check that is ended can go on from there.
    """
    from tqdm import tqdm

    own = {record.path: record for record in records}
    states = {path: state for path in own if (state := _state(path)) is not None}
    hashes = {path: value for path, state in states.items() if (value := memory.get(path, state)) is not None}
    new = [own[path] for path in states if path not in hashes]
    threads = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        made = threads.map(_hash_of, new)
        shown = tqdm(made, "looking at pictures", len(new), disable=len(new) < WORTH_A_BAR)
        for number, (record, value) in enumerate(zip(new, shown, strict=True), start=1):
            if value is not None:
                hashes[record.path] = value
                memory.remember(record.path, states[record.path], value)
                index.remember_sound(record.path, states[record.path])
            if number % saved_every == 0:
                _save(memory, index)
    finally:
        threads.shutdown(cancel_futures=True)
        _save(memory, index)
    return hashes


def _save(memory: HashIndex, index: PictureIndex) -> None:
    memory.save()
    index.save()


def _hash_of(record: ImageRecord) -> PictureHash | None:
    """None where the picture cannot be decoded: whoever looks for damage says why."""
    from library.data.pixels.perceptual_hash import hash_file

    try:
        return hash_file(record.path, record.size)
    except DatasetError:
        return None


def _state(path: Path) -> FileState | None:
    try:
        return file_state(path)
    except OSError:
        return None  # decoding says what is wrong
