"""Ctrl-C and SIGTERM: the first asks the run to stop after its step, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from library.log import get_logger

logger = get_logger(__name__)

INTERRUPTED = 130
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


class StopRequest:
    """Listens to signals while it is a context.

    Before `is_training` is set, a signal raises KeyboardInterrupt wherever the run is: there is nothing to save yet.

    Attributes:
        is_asked: Whether the run shall stop after this step.
        is_training: Whether there is something to save.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.is_training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.is_training:
            raise KeyboardInterrupt
        if self.is_asked:
            os.write(2, b"\nstopped at once; the state that was saved last is complete\n")
            os._exit(INTERRUPTED)
        self.is_asked = True
        # not through the log: its lock may be held by the code that was interrupted
        os.write(2, b"\nstopping: this step is finished, then model and state are saved. Once more stops at once.\n")


def ignore_signals() -> None:
    """In a loader's worker: it ends with its run, which gets the signal too and decides."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
