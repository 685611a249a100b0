"""PyTorch's zip files (.ckpt, .pt, .bin): which tensors lie where, and reading them. Nothing of the file is run.

Such a file holds one pickle, `<name>/data.pkl`, and beside it the bytes of each storage, `<name>/data/<key>`, as they
are. Tensors become ranges of the file, as those of a safetensors file are, and are read one by one. The pickle is read
as unpickling.py says. It is refused if it names what weights do not need, unless the user says otherwise, and even
then nothing that it names is imported or called.

Source: the format of torch.save since torch 1.6.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from library.errors import CheckpointError
from library.log import get_logger
from library.tensorfile import TensorHeader, TensorInfo, TensorReader, hash_tensors, read_header, torch_dtype
from library.unpickling import StoredTensor, WeightsUnpickler, weights_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLAG = "--allow_pickle"
ZIP_START = b"PK\x03\x04"

_LOCAL_HEADER = 30  # bytes before the name of a record
_DAMAGES = (  # what a file that makes no sense can come to
    *(zipfile.BadZipFile, zlib.error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, EOFError, MemoryError),
)
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

logger = get_logger(__name__)


@dataclass(frozen=True)
class PickledHeader(TensorHeader):
    """What a file of torch.save holds.

    Attributes:
        strides: {name: steps in elements} of tensors whose numbers do not lie in their order, as a transposed one's.
            Their ranges span all that lies between the first and the last number.
    """

    strides: Mapping[str, tuple[int, ...]]


def read_any_header(
    path: Path, what: str = "weights file", *, allow_pickle: bool = False, is_told: bool = False
) -> TensorHeader:
    """The header of a safetensors file or of one of torch.save. The first bytes tell what a file is, not its name.

    Args:
        path: The file.
        what: How it is called in an error, for instance "--vae".
        allow_pickle: See `read_pickled_header`.
        is_told: See `read_pickled_header`.

    Raises:
        CheckpointError: The file cannot be used (see `read_header` and `read_pickled_header`).
    """
    try:
        with open(path, "rb") as opened:
            is_zip = opened.read(len(ZIP_START)) == ZIP_START
    except OSError:  # told by `read_header`
        is_zip = False
    if not is_zip:
        return read_header(path, what)
    return read_pickled_header(path, what, allow_pickle=allow_pickle, is_told=is_told)


def read_pickled_header(
    path: Path, what: str = "weights file", *, allow_pickle: bool = False, is_told: bool = False
) -> PickledHeader:
    """Find the tensors of a file that torch.save has written.

    The weights are the top level of the pickle, what it has as "state_dict", or the only entry that it has.

    Args:
        path: A zip file.
        what: How it is called in an error, for instance "--vae".
        allow_pickle: Read files that name functions which weights do not need; they are not called.
        is_told: The log has said so of this file before.

    Raises:
        CheckpointError: The file is damaged, has no tensors, or names such functions.
    """
    try:
        archive = _read_archive(path)
        content, unknown = _content(archive)
        if unknown and not (allow_pickle and is_told):
            _judge_unknown(path, what, unknown, allow_pickle=allow_pickle)
        if isinstance(content, Exception):
            raise ValueError(f"its pickle: {content}")
        tensors = weights_in(content)
        infos = {name: _info(tensor, archive.starts) for name, tensor in tensors.items()}
        strides = {name: tensor.stride for name, tensor in tensors.items() if not tensor.is_in_order}
    except OSError as error:
        raise CheckpointError(f"{what}: {path} cannot be read ({error.strerror or error}).") from None
    except _DAMAGES as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{what}: {path} is damaged ({reason}). Download or copy the file again.") from None
    if not tensors:
        raise CheckpointError(f"{what}: {path} is a pickle without tensors. Check the path, or use another file.")
    return PickledHeader(path, infos, {}, strides)


def _content(archive: _Archive) -> tuple[Any, list[str]]:
    """What the pickle makes, an exception where it is damaged; and the names in it that weights do not need. These are
    told before all else: with stand-ins in their place, what follows may make no sense."""
    unpickler = WeightsUnpickler(archive.pickle)
    return unpickler.content(), unpickler.unknown


def _judge_unknown(path: Path, what: str, names: Sequence[str], *, allow_pickle: bool) -> None:
    shown = ["".join(letter if letter.isprintable() else "?" for letter in name[:80]) for name in names[:3]]
    listed = ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not allow_pickle:
        raise CheckpointError(
            f"{what}: {path} is a pickle (.ckpt/.pt) that asks for {listed}, which weights do not need and which can "
            f"run code. Convert it to .safetensors, or give {FLAG} to read its weights without running any of it."
        )
    logger.warning(
        "%s: %s asks for %s: such a file runs code in programs that open it. Here only its weights are read (%s).",
        *(what, path, listed, FLAG),
    )


# The zip


@dataclass(frozen=True)
class _Archive:
    """The pickle, and {key: (first byte in the file, bytes)} of the storages."""

    pickle: bytes
    starts: Mapping[str, tuple[int, int]]


def _read_archive(path: Path) -> _Archive:
    """Raises one of `_DAMAGES`, or OSError."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        root = _root(archive)
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are those of a big-endian machine")
        return _Archive(archive.read(f"{root}data.pkl"), _record_starts(archive, file, f"{root}data/"))


def _root(archive: zipfile.ZipFile) -> str:
    """What stands before "data.pkl", for instance "archive/". Raises ValueError where there is none."""
    names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if not names:
        raise ValueError("it is a zip file without data.pkl")
    return min(names, key=len).removesuffix("data.pkl")


def _record_starts(archive: zipfile.ZipFile, file: BinaryIO, folder: str) -> dict[str, tuple[int, int]]:
    """{key: (first byte, bytes)} of the storages. Raises ValueError where one is compressed or beyond the end."""
    starts = {}
    size = file.seek(0, 2)
    for record in archive.infolist():
        if not record.filename.startswith(folder):
            continue
        if record.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{record.filename} is compressed")
        file.seek(record.header_offset)
        header = file.read(_LOCAL_HEADER)  # its last two numbers are the lengths of the name and of the extra field
        start = (
            record.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        )
        if len(header) < _LOCAL_HEADER or start + record.file_size > size:
            raise ValueError(f"{record.filename} is beyond its end")
        starts[record.filename.removeprefix(folder)] = (start, record.file_size)
    return starts


def _info(tensor: StoredTensor, starts: Mapping[str, tuple[int, int]]) -> TensorInfo:
    """Raises ValueError where a tensor is not inside its storage."""
    if tensor.storage.key not in starts:
        raise ValueError(f"its record data/{tensor.storage.key} is missing")
    start, size = starts[tensor.storage.key]
    width = _BYTES.get(tensor.dtype)
    if width is None:  # refused by whoever wants to read it
        return TensorInfo(tensor.dtype, tensor.shape, start, start)
    first, end = tensor.offset * width, (tensor.offset + tensor.extent) * width
    if min(tensor.offset, *tensor.shape, *tensor.stride, 0) < 0 or end > size:
        raise ValueError("a tensor is not inside its storage")
    return TensorInfo(tensor.dtype, tensor.shape, start + first, start + end)


# Reading


def tensor_reader(header: TensorHeader, *, mmap: bool = True) -> TensorReader:
    """Reads the tensors of a safetensors file or of one of torch.save."""
    return PickledReader(header, mmap=mmap) if isinstance(header, PickledHeader) else TensorReader(header, mmap=mmap)


def read_any_tensors(header: TensorHeader) -> dict[str, Tensor]:
    """Every tensor of such a file in its stored dtype, in host memory or in the mapped file.

    Raises:
        CheckpointError: The file has changed since its header was read, or has a type that torch lacks.
    """
    reader = tensor_reader(header)
    return {name: reader.view(name) for name in header.tensors}


class PickledReader(TensorReader):
    """Reads the tensors of a file of torch.save; see `TensorReader`."""

    header: PickledHeader

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        return self._in_order(name) if name in self.header.strides else super().read(name)

    def borrow(self, name: str) -> Tensor:
        """A tensor to be copied from at once."""
        return self._in_order(name) if name in self.header.strides else super().borrow(name)

    def _in_order(self, name: str) -> Tensor:
        """Of a tensor whose numbers lie otherwise, all that lies between them is read, as a row."""
        info = self.header.tensors[name]
        row = TensorReader(TensorHeader(self.header.path, {name: replace(info, shape=(-1,))}, {})).read(name)
        return row.as_strided(info.shape, self.header.strides[name]).contiguous()

    def view(self, name: str) -> Tensor:
        """A tensor that lies in the mapped file where mapping is allowed; it keeps the mapping alive."""
        import torch

        info = self.header.tensors[name]
        dtype = torch_dtype(info.dtype)
        if not self._mmap or name in self.header.strides or not math.prod(info.shape) or info.start % dtype.itemsize:
            return self.read(name)
        try:
            if self._mapped is None:
                path = self.header.path
                self._mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        except (OSError, RuntimeError) as error:
            raise self._fault(error) from None
        part = cast("torch.UntypedStorage", self._mapped[info.start : info.end])
        return torch.empty(0, dtype=dtype).set_(part, 0, info.shape, torch.empty(info.shape, device="meta").stride())


def hash_any_tensors(header: TensorHeader, names: Mapping[str, str]) -> str:
    """`hash_tensors`, the same for equal tensors of a file of torch.save."""
    if not isinstance(header, PickledHeader) or not header.strides.keys() & names.keys():
        return hash_tensors(header, names)
    import torch

    digest, reader = hashlib.sha256(), PickledReader(header)
    for name in sorted(names, key=lambda key: names[key]):
        info = header.tensors[name]
        digest.update(f"{names[name]} {info.dtype} {info.shape}\n".encode())
        digest.update(reader.read(name).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
