"""Which device there is, which number format a precision means, and memory in words.

torch is imported inside the functions, so that importing this file costs nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PRECISIONS = ("float", "fp16", "bf16")
"""Number formats of files, as options name them; see `precision_dtype`."""
_GIB = 1024**3
_FIRST_WITH_BF16 = (8, 0)  # compute capability of Ampere


def has_accelerator() -> bool:
    """Whether there is anything but the CPU to compute on: CUDA, Apple's MPS or Intel's XPU."""
    return choose_device().type != "cpu"


def choose_device() -> torch.device:
    """The first device of the best kind there is. Under several processes accelerate chooses the one to use."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("cpu")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device that may still be busy. CUDA copies without waiting from page-locked memory only."""
    is_on_host = tensor.device.type == "cpu"
    if device.type == "cuda" and is_on_host:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=is_on_host)


def check_device(name: str, option: str) -> None:
    """See whether a device is there.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on.
        option: As the user types it, for the message.

    Raises:
        EnvironmentFault: It is not.
    """
    there = _device_names()
    if name not in there and f"{name}:0" not in there:
        raise EnvironmentFault(f"{option} {name}: there is no such device, only {', '.join(there)}. Choose another.")


def _device_names() -> list[str]:
    import torch

    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        names += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return names


def encoder_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of frozen encoders: as asked for, but no fp16 on a CPU, which has hardly any arithmetic for it."""
    import torch

    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def precision_dtype(precision: str) -> torch.dtype:
    """What `--mixed_precision` ("no", "fp16", "bf16") or `--save_precision` ("float", ...) means.

    Raises:
        KeyError: Another name; the options admit none.
    """
    import torch

    return {
        "no": torch.float32,
        "float": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
    }[precision]


def precision_note(precision: str, device: torch.device) -> str | None:
    """One sentence where a GPU computes in a precision by detours, which is slow; None where all is well."""
    import torch

    if precision != "bf16" or device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= _FIRST_WITH_BF16 or torch.version.hip:
        return None
    version = ".".join(map(str, capability))
    return (
        f"--mixed_precision bf16: this GPU (compute capability {version}) has no bf16 of its own and is slow with it. "
        "Use --mixed_precision fp16."
    )


def release_unused_memory(device: torch.device) -> None:
    """Give back the memory of models that are no longer used, of the GPU and of the host. Slow: for the end of a phase,
    not for a loop."""
    if device.type == "cuda":
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()
    _trim_host_memory()


def _trim_host_memory() -> None:
    """Return freed memory to the system. Linux's C library keeps what lies between things that are in use."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and keep less
        if trim is not None:
            trim(0)


def device_words(device: torch.device) -> str:
    """The device by name, "cuda (NVIDIA L4)"."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return "CPU" if device.type == "cpu" else str(device)


def memory_words(device: torch.device) -> str:
    """How much memory was in use at most, "9.1 of 23.7 GiB"; empty where the system does not say."""
    import torch

    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.max_memory_allocated(device) / _GIB:.1f} of {total / _GIB:.1f} GiB"
    if device.type == "cpu" and sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # kibibytes everywhere but on macOS
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB:.1f} GiB"
    return ""
