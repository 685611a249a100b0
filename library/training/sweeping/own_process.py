"""A training in a process of its own, which gets the signals that this one gets."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


def run_until_stopped(command: Sequence[str]) -> tuple[int, bool]:
    """Run a program, and pass signals on to it: it decides what they mean.

    A terminal sends Ctrl-C to both, and the second within a second counts as the first (`StopRequest`).

    Returns:
        Its exit code, and whether a signal came.
    """
    heard: list[int] = []
    process = subprocess.Popen(command)

    def hear(number: int, _: Any) -> None:
        heard.append(number)
        process.send_signal(number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hear) for number in _SIGNALS} if is_main else {}
    try:
        return process.wait(), bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
