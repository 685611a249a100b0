"""Writing weights files of many gigabytes tensor by tensor: each is fetched, cast and written before the next.

What is written is planned first: names, shapes and types are known before any weight is read. Safetensors files are
laid out as the safetensors package does it, so that equal weights give equal bytes, and hashed on the way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OutputError
from library.tensorfile import save_with_torch, torch_dtype, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HASH_KEY = "modelspec.hash_sha256"  # SHA-256 of all tensor data, as "0x" and 64 digits
_NO_HASH = "0x" + "0" * 64
_TYPES = (  # larger ones first, as files have them, so that every tensor is aligned
    *("I64", "F64", "F32", "I32", "BF16", "F16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written.

    Attributes:
        shape: As it will be in the file.
        dtype: Likewise.
        fetch: Gives it, on any device and in any type; called once for each time it is written. What it gives may be
            what becomes a tensor by `detach`: of a model that lies in several processes, tensors are gathered then.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return prod(self.shape) * self.dtype.itemsize

    def load(self, name: str) -> Tensor:
        """The tensor as it is written: contiguous, on the CPU.

        Raises:
            OutputError: It has another shape than was planned, or its numbers do not fit the type.
        """
        found = self.fetch().detach()
        if tuple(found.shape) != self.shape:
            raise OutputError(f"{name} has shape {list(found.shape)}, {list(self.shape)} was expected.")
        tensor = found.cpu().to(self.dtype).contiguous()
        if tensor.dtype != found.dtype:
            refuse_overflow(name, tensor)
        return tensor


def plan_tensor(tensor: Tensor, dtype: torch.dtype | None = None) -> PlannedTensor:
    """Plan to write a tensor that is at hand.

    Args:
        tensor: Of any kind; integers are never cast.
        dtype: Of the file. None keeps that of the tensor, but fp8, which few programs read, becomes fp16.
    """
    return PlannedTensor(tuple(tensor.shape), written_dtype(tensor.dtype, dtype), lambda: tensor)


def written_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """In which type a tensor is written, see `plan_tensor`."""
    import torch

    if not stored.is_floating_point:
        return stored
    return wanted or (torch.float16 if stored.itemsize == 1 else stored)


def refuse_overflow(name: str, tensor: Tensor, advice: str = "Use --save_precision bf16 or float.") -> None:
    """Refuse what was computed or rounded in a type that is too narrow for it.

    Args:
        name: Of the tensor.
        tensor: In that type.
        advice: What to do, as a sentence.

    Raises:
        OutputError: It has NaN or infinite values.
    """
    import torch

    if tensor.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        precision = str(tensor.dtype).removeprefix("torch.")
        raise OutputError(f"{name} has numbers that {precision} cannot hold. {advice}")


def total_bytes(tensors: Mapping[str, PlannedTensor]) -> int:
    """Bytes of all tensors in a file; its header is not counted."""
    return sum(tensor.num_bytes for tensor in tensors.values())


def write_planned(path: Path, tensors: Mapping[str, PlannedTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file so that `path` is either what it was or the complete new one.

    Holds one tensor at a time beside what `fetch` holds.

    Args:
        path: Final name.
        tensors: {name: tensor}.
        metadata: For the header. Where it has `HASH_KEY`, the hash of what was written becomes its value.

    Raises:
        OutputError: It cannot be written, or a tensor is not as planned; what was there before still is.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (_TYPES.index(_type_name(item[1].dtype)), item[0])))
    described = dict(metadata or {})

    def write(place: Path) -> None:
        is_hashed = HASH_KEY in described
        header = _header(ordered, {**described, HASH_KEY: _NO_HASH} if is_hashed else described)
        with open(place, "wb") as file, ThreadPoolExecutor(1) as hashing:
            file.write(header)
            digest = hashlib.sha256()

            def write_one(name: str, tensor: PlannedTensor) -> None:  # and let it go before the next one
                data = _bytes_of(tensor.load(f"{path}: {name}"))
                hashed = hashing.submit(digest.update, data) if is_hashed else None
                file.write(data)
                if hashed is not None:
                    hashed.result()

            for name, tensor in ordered.items():
                write_one(name, tensor)
            if is_hashed:
                file.seek(0)
                file.write(_header(ordered, {**described, HASH_KEY: f"0x{digest.hexdigest()}"}))

    write_atomically(path, write, total_bytes(ordered))


def pickle_planned(
    path: Path,
    tensors: Mapping[str, PlannedTensor],
    key: str = "state_dict",
    beside: Mapping[str, int] | None = None,
) -> None:
    """Write {key: {name: tensor}, **beside} as torch.save does, atomically. All tensors are in host memory at once.

    Raises:
        OutputError: See `write_planned`.
    """

    def write(place: Path) -> None:
        # A view would be saved with all that it is a view of.
        loaded = {name: _alone(tensor.load(f"{path}: {name}")) for name, tensor in tensors.items()}
        save_with_torch({key: loaded, **(beside or {})}, place)

    write_atomically(path, write, total_bytes(tensors))


def _alone(tensor: Tensor) -> Tensor:
    is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if is_view else tensor


def _header(tensors: Mapping[str, PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of the header, padded to a multiple of 8 bytes."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.num_bytes
        table[name] = {"dtype": _type_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _type_name(dtype: torch.dtype) -> str:
    name = next((name for name in _TYPES if torch_dtype(name) == dtype), None)
    if name is None:
        raise OutputError(f"tensors of type {dtype} cannot be written. Choose a --save_precision.")
    return name


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    if not tensor.numel():
        return memoryview(b"")
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return data
