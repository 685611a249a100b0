"""OpenCV, with one thread.

Several pictures are decoded at once anyway, and its pool of threads does not survive forking: a worker that inherits
one waits forever.
"""

from __future__ import annotations

from typing import Any


def opencv() -> Any:
    """The module. A process that will fork asks for it before, so that no pool is inherited."""
    import cv2

    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    return cv2
