"""Memory in use now, and the two ways in which it runs short without an error: told in time, in one sentence.

torch and psutil are imported inside the functions, so that importing this file costs nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_GIB = 1024**3
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # in errors of no class of their own
_NEARLY_FULL = 0.95  # Windows and the screen keep a little of every GPU for themselves
_CONTEXT = 3 * _GIB // 10  # of CUDA for a process, assumed: 0.3 to 0.5 GiB, less or more by card and version
_ALMOST_FREE = 0.9  # reading weights takes a little more than the weights


class GpuMemory(NamedTuple):
    """Bytes that torch has taken from a GPU, and all that the GPU has."""

    reserved: int
    total: int


def gpu_memory(device: torch.device) -> GpuMemory | None:
    """Asks torch's own counters and waits for nothing; None where the device is no CUDA GPU."""
    if device.type != "cuda":
        return None
    import torch

    return GpuMemory(torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory)


def device_memory_to_have() -> int | None:
    """Bytes of the GPU that this process can have in all; None where there is none, or its system does not say.

    What is free now, and what the process has already: torch's part is known, and the context of the driver, which
    is there as soon as this is asked, counts with the least that it takes.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    own = int(os.environ.get("LOCAL_RANK", "0") or 0)  # of several processes each has a GPU of its own
    free, total = torch.cuda.mem_get_info(own)
    return with_own(free, total, torch.cuda.memory_reserved(own))


def with_own(free: int, total: int, reserved: int) -> int:
    """Free bytes and those that the process itself has: what torch has reserved, and the driver's context."""
    return min(free + reserved + _CONTEXT, total)


def memory_in_use(device: torch.device) -> int | None:
    """Bytes in use now: of the GPU by tensors, or of the host by this process. Waits for nothing."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    if device.type == "cpu":
        import psutil

        return int(psutil.Process().memory_info().rss)
    return None


def available_host_memory() -> int:
    """Bytes of host memory that can be taken without swapping. A container's limit counts too, where Linux tells it."""
    import psutil

    available = int(psutil.virtual_memory().available)
    free = _free_in_container(Path("/sys/fs/cgroup"))
    return available if free is None else min(available, free)


def _free_in_container(folder: Path) -> int | None:
    """What the limit of a control group (Linux, version 2) leaves; None without a limit. Cached files can go."""
    try:
        limit, used = ((folder / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        return max(int(limit) - int(used) + int(fields["file"]), 0)
    except (OSError, ValueError, KeyError):  # ValueError: "max" stands for no limit
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there is not enough memory, on the device or on the host."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def spill_warning(reserved_bytes: int, total_bytes: int, platform: str = sys.platform) -> str | None:
    """What to tell, once, where Windows has begun or is about to move GPU memory to the host; else None.

    Windows lets a full GPU go on in host memory, and a step then takes minutes instead of seconds. Other systems
    raise an error.
    """
    if platform != "win32" or reserved_bytes < _NEARLY_FULL * total_bytes:
        return None
    return (
        f"the run takes {reserved_bytes / _GIB:.1f} of the GPU's {total_bytes / _GIB:.1f} GiB: Windows moves what does "
        "not fit to host memory, which is many times slower. Use a smaller batch or resolution, or "
        "--gradient_checkpointing, and close other programs that use the GPU."
    )


def host_memory_note(needed_bytes: int, available_bytes: int, what: str = "the text encoders") -> str | None:
    """What to tell before `needed_bytes` of weights are read and the host has too little free memory; else None."""
    if needed_bytes <= _ALMOST_FREE * available_bytes:
        return None
    return (
        f"{what} need about {needed_bytes / _GIB:.1f} GiB of host memory to be read, and {available_bytes / _GIB:.1f} "
        "GiB are free: the system may swap, or end the run. Close other programs, or use a file in fewer bits."
    )
