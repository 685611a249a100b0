"""Ctrl-C and SIGTERM: the first asks the run to stop after its step, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from library.log import get_logger
from library.options.entry import INTERRUPTED

logger = get_logger(__name__)

ONE_SIGNAL = 1.0  # seconds within which several are one: schedulers send SIGINT and SIGTERM together
WORKER_SECONDS = 600  # that a loader's worker lives on after it was told to end
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
        self._asked_at = 0.0
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
        if self.is_asked and time.monotonic() - self._asked_at < ONE_SIGNAL:
            return
        if self.is_asked:
            os.write(2, b"\nstopped at once; the state that was saved last is complete\n")
            os._exit(INTERRUPTED)
        self.is_asked, self._asked_at = True, time.monotonic()
        # not through the log: its lock may be held by the code that was interrupted
        os.write(2, b"\nstopping: this step is finished, then model and state are saved. Once more stops at once.\n")


def outlive_signals() -> None:
    """In a loader's worker: it ends with its run, which gets the signal too and decides. A stuck one ends in time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later if hasattr(signal, "alarm") else signal.SIG_IGN)


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.alarm(WORKER_SECONDS)
