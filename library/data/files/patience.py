"""Reading again what a network drive failed to give: hiccups of a drive shall not end a run of hours."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from library.log import get_logger

logger = get_logger(__name__)

PAUSES = (0.5, 2.0, 5.0)  # seconds before each further attempt

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "EAGAIN", "EINTR", "EBUSY", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH"),
        *("ENETRESET", "ECONNABORTED", "ECONNRESET", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
)
_PASSING_ON_WINDOWS = frozenset((53, 54, 59, 64, 121, 1231, 1236))  # network path, name or connection lost, timeout

_Result = TypeVar("_Result")


def read_patiently(read: Callable[[], _Result], path: Path) -> _Result:
    """Call `read`; if it fails as drives fail for a moment, call it again after growing pauses.

    Args:
        read: Reads a file, from its start each time.
        path: The file, for the log.

    Raises:
        OSError: The last attempt failed, or the fault is none that passes.
    """
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if not may_pass(error):
                raise
            logger.warning("%s cannot be read (%s); trying again in %g s.", path, error.strerror or error, pause)
        time.sleep(pause)
    return read()


def may_pass(error: OSError) -> bool:
    """Whether a fault may be gone in a moment, as those of networks and busy drives."""
    return error.errno in _PASSING or getattr(error, "winerror", None) in _PASSING_ON_WINDOWS
