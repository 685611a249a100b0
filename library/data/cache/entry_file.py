"""The file of one cache entry: a safetensors file that can tell damage inside from intact tensors.

Rows of zeros at the end of token states, which a mask leaves there, are not stored; reading puts them back. The
header states the full lengths and a checksum; both describe the content, not what it was made from.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.tensorfile import torch_dtype, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"
FULL_ROWS = "full_rows"

_USUAL_HEADER = 2048  # bytes that are read at once


class DamagedFile(ValueError):
    """What is wrong with the content of a file: a clause without full stop."""


@dataclass(frozen=True)
class Packed:
    """Tensors without their last rows of zeros.

    Attributes:
        tensors: On the CPU, in memory of their own or the caller's.
        full_rows: Number of rows of those that have lost some, by name.
    """

    tensors: Mapping[str, Tensor]
    full_rows: Mapping[str, int]

    def checksum(self) -> str:
        """CRC-32 over everything that is stored, as eight hexadecimal digits."""
        import torch

        total = zlib.crc32(json.dumps(dict(self.full_rows), sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
            total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
        return f"{total:08x}"


def pack(tensors: Mapping[str, Tensor]) -> Packed:
    """Leave out the zeros at the end of token states; the first row always stays.

    Args:
        tensors: Without batch axis; those with two axes are token states [N, D].
    """
    own = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    kept = {name: max(min(1, len(tensor)), num_used(tensor)) for name, tensor in own.items() if tensor.ndim == 2}
    cut = {name: rows for name, rows in kept.items() if rows < len(own[name])}
    shorter = {name: own[name][:rows] for name, rows in cut.items()}
    return Packed({**own, **shorter}, {name: len(own[name]) for name in cut})


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The tensors that `pack` was given."""
    return {name: _padded(tensor, packed.full_rows.get(name)) for name, tensor in packed.tensors.items()}


def write_entry(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write the file so that `path` is either what it was or complete.

    Args:
        path: Final name.
        tensors: Without batch axis.
        header: What they were made from.

    Raises:
        OutputError: The file cannot be written.
    """
    packed = pack(tensors)
    content = {CHECKSUM: packed.checksum()}
    if packed.full_rows:
        content[FULL_ROWS] = json.dumps(dict(packed.full_rows), sort_keys=True)
    write_tensors(path, packed.tensors, {**header, **content})


def read_entry(path: Path) -> tuple[dict[str, str], Packed]:
    """Header and tensors, read in one go with ordinary file access, so that a broken drive is an error and no crash.

    Raises:
        DamagedFile: It is not a whole safetensors file.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        data = bytearray(file.seek(0, 2))
        file.seek(0)
        num_read = file.readinto(data)
    try:
        if num_read < len(data):
            raise ValueError("it ends too early")
        start = 8 + int.from_bytes(data[:8], "little")
        table = json.loads(data[8:start])
        metadata = {str(key): str(value) for key, value in table.pop("__metadata__", {}).items()}
        tensors = {name: _tensor(data, start, **entry) for name, entry in table.items()}
        return metadata, Packed(tensors, stated_rows(metadata))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, CheckpointError):
        raise DamagedFile("it is damaged") from None


def read_entry_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Header of a file, and the shapes of its tensors as stored. Needs no torch and a tenth of a millisecond.

    Raises:
        DamagedFile: It is not a whole safetensors file.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, _USUAL_HEADER)
        start = 8 + int.from_bytes(data[:8], "little")
        if len(data) < start <= size:
            data += os.read(descriptor, start - len(data))
    finally:
        os.close(descriptor)
    try:
        table = json.loads(data[8:start])
        metadata = {str(key): str(value) for key, value in table.pop("__metadata__", {}).items()}
        shapes = {name: tuple(entry["shape"]) for name, entry in table.items()}
        end = start + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise DamagedFile("it is damaged") from None
    if end != size:
        raise DamagedFile("it is cut off")
    return metadata, shapes


def stated_rows(metadata: Mapping[str, str]) -> dict[str, int]:
    """Full lengths of shortened tensors, from a file's header.

    Raises:
        ValueError: The header is damaged.
    """
    return {str(name): int(rows) for name, rows in json.loads(metadata.get(FULL_ROWS, "{}")).items()}


def without_content(metadata: Mapping[str, str]) -> dict[str, str]:
    """Of a file's header, what the tensors were made from."""
    return {key: value for key, value in metadata.items() if key not in (CHECKSUM, FULL_ROWS)}


def verify(metadata: Mapping[str, str], packed: Packed) -> None:
    """Make sure that the tensors are those that were written.

    Raises:
        DamagedFile: They are not, or have values that are not finite.
    """
    if packed.checksum() != metadata.get(CHECKSUM):
        raise DamagedFile("its checksum is wrong")
    if broken := [name for name, tensor in packed.tensors.items() if not is_finite(tensor)]:
        raise DamagedFile(f"{broken[0]} has NaN or infinite values")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinite values."""
    import torch

    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())  # one pass; NaN goes through
    return bool(torch.isfinite(low) & torch.isfinite(high))


def num_used(states: Tensor) -> int:
    """Number of rows up to the last one that is not zero. For tensors on the CPU [N, D]."""
    used = states.ne(0).any(dim=1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _padded(tensor: Tensor, rows: int | None) -> Tensor:
    if rows is None:
        return tensor
    full = tensor.new_zeros(rows, *tensor.shape[1:])
    full[: len(tensor)] = tensor
    return full


def _tensor(data: bytearray, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    import torch

    first, last = data_offsets
    kind = torch_dtype(dtype)
    if first == last:
        return torch.empty(shape, dtype=kind)
    count = (last - first) // torch.empty(0, dtype=kind).element_size()
    return torch.frombuffer(data, dtype=kind, count=count, offset=start + first).reshape(shape)
