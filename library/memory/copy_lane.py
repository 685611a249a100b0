"""Copies between host and device that run beside the computing, in an order of their own.

A mark is a point in the course of one of the two: what was asked for up to it is done once it is reached. Marks order
copies and computing on the device alone, the host waits for neither.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

Mark = Any  # of a lane; None is always reached


class CopyLane(Protocol):
    """Copies one after the other, in the order in which they were asked for."""

    def computed(self) -> Mark:
        """All computing that was asked for so far."""

    def copy(self, target: Tensor, source: Tensor, *, after: Mark = None) -> Mark:
        """Copy flat bytes once `after` is reached; the mark is reached when they are there."""

    def hold(self, mark: Mark) -> None:
        """Let computing that is asked for from now on wait for a mark."""

    def finish(self) -> None:
        """Let the host wait for all copies."""


class DirectLane:
    """Copies at once: where the device is the host."""

    def computed(self) -> Mark:
        return None

    def copy(self, target: Tensor, source: Tensor, *, after: Mark = None) -> Mark:
        target.copy_(source)

    def hold(self, mark: Mark) -> None:
        return None

    def finish(self) -> None:
        return None


class CudaLane:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def computed(self) -> Mark:
        return torch.cuda.current_stream(self._device).record_event()

    def copy(self, target: Tensor, source: Tensor, *, after: Mark = None) -> Mark:
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def hold(self, mark: Mark) -> None:
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self) -> None:
        self._stream.synchronize()


def copy_lane(device: torch.device) -> CopyLane:
    """The lane of a device."""
    return CudaLane(device) if device.type == "cuda" else DirectLane()


def host_bytes(size: int, device: torch.device) -> Tensor:
    """Host memory for copies to a device: on CUDA page-locked, without which copies hold everything up.

    torch's own page-locked memory comes in powers of two; a block of a large model would waste up to half of it, so
    ordinary memory is locked here. Processes that this one starts do not get it: they would get copies of it, as its
    pages may not move. Where the system allows no more locked memory, it is unlocked (`is_pinned`), slower, and right.
    """
    if device.type != "cuda" or not size:
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_DONTFORK"):
        pages.madvise(mmap.MADV_DONTFORK)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    address, runtime = memory.data_ptr(), torch.cuda.cudart()
    if int(runtime.cudaHostRegister(address, size, 0)):
        with suppress(RuntimeError):  # CUDA tells of the failure once more, to what runs next
            torch.ones(1, device=device).add_(1)
        return memory
    weakref.finalize(memory, runtime.cudaHostUnregister, address).atexit = False
    return memory
