"""Text encoders one after the other: each is loaded, reads its captions and is freed before the next one comes.

What the first ones say waits in host memory for the last one, with which an entry is complete. That memory is limited,
so the encoders take turns again where there are many captions.
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from library.device import release_unused_memory
from library.training.encoding.encoding_setup import EncodingSetup
from library.training.encoding.text_stage import TextStage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    States = dict[str, Tensor]

WAITING_BYTES = 4 << 30  # of states in host memory; about 13,000 captions of 77 tokens, 2048 numbers each


class EncoderTurns:
    """Encodes batches with one encoder at a time.

    Args:
        setup: Of the run.
        names: The encoders; the last one should be the slowest, as its states are handed on at once.
        tokenizers: Theirs.
        batches: Captions of all batches, in the order in which `encode` will be asked for them.
        waiting_bytes: Host memory for what waits.
    """

    def __init__(
        self,
        setup: EncodingSetup,
        names: Sequence[str],
        tokenizers: Any,
        batches: Sequence[Sequence[str]],
        *,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        self.setup, self.names, self.tokenizers = setup, tuple(names), tokenizers
        self._turns = deque(_turns(batches, self._texts_at_once(waiting_bytes)))
        self._waiting: deque[list[States]] = deque()
        self._last: TextStage | None = None

    def encode(self, captions: Sequence[str]) -> list[States]:
        """States of the next batch, on the CPU: for each caption a mapping without batch axis."""
        if self._last is None:
            self._begin_turn()
        assert self._last is not None
        rows = _rows(self._last, captions)
        before = self._waiting.popleft()
        if not self._waiting:
            stages, self._last = [self._last], None
            _forget(stages, self.setup.device)
        return [{**first, **row} for first, row in zip(before, rows, strict=True)]

    def _begin_turn(self) -> None:
        """Let all encoders but the last read the batches of the turn, and load the last one."""
        batches = self._turns.popleft()
        waiting: list[list[States]] = [[{} for _ in batch] for batch in batches]
        for name in self.names[:-1]:
            for known, rows in zip(waiting, self._read(name, batches), strict=True):
                for states, row in zip(known, rows, strict=True):
                    states.update(row)
        self._waiting.extend(waiting)
        self._last = self._load(self.names[-1])

    def _read(self, name: str, batches: Sequence[Sequence[str]]) -> Iterator[list[States]]:
        from tqdm import tqdm

        stages = [self._load(name)]
        is_hidden = not self.setup.accelerator.is_main_process
        bar = tqdm(total=sum(map(len, batches)), desc=name, unit=" captions", disable=is_hidden, leave=False)
        with bar:
            for batch in batches:
                yield _rows(stages[0], batch)
                bar.update(len(batch))
        _forget(stages, self.setup.device)

    def _load(self, name: str) -> TextStage:
        setup = self.setup
        encoders = setup.family.load_text_encoders(setup.files, setup.dtype, setup.device, [name])
        tokenizers = {name: self.tokenizers[name]}
        return TextStage(setup.family, setup.device, encoders, tokenizers, frozen_dtype=setup.stored_dtype)

    def _texts_at_once(self, waiting_bytes: int) -> int:
        """How many captions fit, at their full length."""
        setup, first = self.setup, self.names[:-1]
        size = setup.stored_dtype.itemsize
        each = setup.family.text_state_bytes(setup.files, first, [{}], element_bytes=size) if first else 0
        return max(1, waiting_bytes // max(1, each))


def _turns(batches: Sequence[Sequence[str]], most: int) -> Iterator[list[Sequence[str]]]:
    """The batches in groups of at most `most` captions, and at least one batch."""
    group: list[Sequence[str]] = []
    for batch in batches:
        if group and sum(map(len, group)) + len(batch) > most:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def _forget(stages: list[TextStage], device: torch.device) -> None:
    """Free the encoders of stages that nobody else knows, before the next one is read."""
    encoders = [weakref.ref(encoder) for stage in stages for encoder in stage.encoders.values()]
    stages.clear()
    if any(encoder() is not None for encoder in encoders):  # the frames of an error on their way may know it
        gc.collect()
    release_unused_memory(device)


def _rows(stage: TextStage, captions: Sequence[str]) -> list[States]:
    rows = {name: state.cpu() for name, state in stage.encode(captions).items()}
    return [{name: state[i] for name, state in rows.items()} for i in range(len(captions))]
