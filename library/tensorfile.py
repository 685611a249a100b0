"""One safetensors file: its header, its checks, reading and atomic writing.

Headers are read without torch, so a wrong or damaged file is named in milliseconds. Format: 8 bytes
little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensor data.
Source: the safetensors format description, version 0.4 and later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from library.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MAX_HEADER = 100_000_000
_CHUNK = 1 << 22
_MAX_REMEMBERED = 1000  # hashes
_TEMPORARY = re.compile(r"\.(\d+)-([0-9a-f]{6})[0-9a-f]{6}\.tmp")  # process, machine, chance
_ABANDONED_AFTER = 600  # seconds without a change
_PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))  # how torch and Python begin them
PNG_START = b"\x89PNG"
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. `start` and `end` are byte offsets in the file."""

    dtype: str  # as in safetensors: F32, F16, BF16, F8_E4M3, I64 ...
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorHeader:
    """The header of a safetensors file."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: str | os.PathLike[str], what: str = "weights file") -> TensorHeader:
    """Read and check a safetensors header.

    Args:
        path: The file.
        what: How the file is called in an error, for instance "--vae".

    Raises:
        CheckpointError: The file is missing, a folder, an HTML page, a pickle, truncated or malformed.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{what}: {path} is a folder. Give the .safetensors file itself.")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = _read_raw_header(file, path, what, size)
    except FileNotFoundError:
        raise CheckpointError(f"{what}: {path} does not exist. {_nearest_parent(path)}") from None
    except OSError as error:
        raise CheckpointError(f"{what}: {path} cannot be read ({error.strerror or error}).") from None
    data_start = 8 + len(raw)
    try:
        table = json.loads(raw)
        metadata = {str(k): str(v) for k, v in (table.pop("__metadata__", None) or {}).items()}
        tensors = {name: _tensor_info(entry, data_start) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{what}: the header of {path} is damaged. Download or copy the file again.") from None
    end = max((info.end for info in tensors.values()), default=data_start)
    if end > size:
        raise CheckpointError(_truncated(path, what, size, end))
    if end < size:
        raise CheckpointError(
            f"{what}: {path} has {size - end:,} bytes more than its header says. Download or copy the file again."
        )
    return TensorHeader(path, tensors, metadata)


def _read_raw_header(file: BinaryIO, path: Path, what: str, size: int) -> bytes:
    """The JSON of the header; refuses what is not safetensors."""
    prefix = file.read(256)
    if size < 9:
        much = f"has {size} bytes only" if size else "is empty"
        raise CheckpointError(f"{what}: {path} {much}. Download the file again.")
    length = int.from_bytes(prefix[:8], "little")
    if prefix[8:9] != b"{" or length > _MAX_HEADER:
        raise CheckpointError(_other_content(path, what, prefix))
    if 8 + length > size:
        raise CheckpointError(_truncated(path, what, size, None))
    file.seek(8)
    return file.read(length)


def _tensor_info(entry: Mapping[str, Any], data_start: int) -> TensorInfo:
    """Raises ValueError, KeyError or TypeError where the entry makes no sense."""
    start, end = (int(offset) for offset in entry["data_offsets"])
    dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
    bits = _BITS.get(dtype)
    if not 0 <= start <= end or min(shape, default=0) < 0:
        raise ValueError("offsets or shape below zero")
    if bits is not None and (end - start) * 8 != math.prod(shape) * bits:
        raise ValueError("offsets do not fit the shape")
    return TensorInfo(dtype, shape, data_start + start, data_start + end)


def _nearest_parent(path: Path) -> str:
    if _is_hub_like(path):
        return "Models are not downloaded from a hub here: give a file or a folder."
    for parent in path.absolute().parents:
        if parent.is_dir():
            near = "Check the path" if parent == path.absolute().parent else "The nearest folder that exists"
            return f"{near}: {parent} has {_listing(parent)}."
    return "Check the path."


def _is_hub_like(path: Path) -> bool:
    """Whether it looks like the name of a model on a hub."""
    is_name = len(path.parts) == 2 and not path.is_absolute() and path.suffix not in (".safetensors", ".ckpt", ".pt")
    return is_name and not path.parent.is_dir()


def _listing(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".safetensors")
    except OSError:
        return "nothing that can be read"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "no .safetensors file"


def _other_content(path: Path, what: str, prefix: bytes) -> str:
    """What a file holds that is not safetensors, from its first bytes."""
    start = prefix.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            f"{what}: {path} is a web page, not weights. The download needs a login or an accepted licence; "
            "download it again in a browser or with a token."
        )
    if start.startswith(b"version https://git-lfs"):
        return f"{what}: {path} is a git-lfs pointer, not weights. Run `git lfs pull` in its folder."
    if prefix.startswith(PNG_START):
        return f"{what}: {path} is a PNG picture, no weights. Check the path."
    if prefix.startswith(_PICKLES):
        return f"{what}: {path} is a pickle (.ckpt/.pt), which can run code when loaded. Convert it to .safetensors."
    return f"{what}: {path} is not a safetensors file. Check the download or the path."


def _truncated(path: Path, what: str, size: int, expected: int | None) -> str:
    of = f" of {expected:,}" if expected else ""
    return f"{what}: {path} is truncated: {size:,}{of} bytes are there. Download or copy the file again."


def read_tensors(
    header: TensorHeader,
    names: Iterable[str] | None = None,
    *,
    device: str = "cpu",
    mmap: bool = True,
) -> dict[str, Tensor]:
    """Read tensors in their stored dtype.

    Args:
        header: From `read_header`.
        names: Which tensors; None reads all.
        device: Where they go.
        mmap: False reads with ordinary file access, for drives on which memory mapping is slow. What goes to another
            device is always read so: pages of a mapped file stay in the memory of the process.

    Raises:
        CheckpointError: The file has changed since its header was read, or has a type that torch lacks.
    """
    wanted = list(header.tensors) if names is None else list(names)
    for name in wanted:
        torch_dtype(header.tensors[name].dtype)
    reader = TensorReader(header, mmap=mmap)
    if device == "cpu":
        return {name: reader.view(name) for name in wanted}
    return {name: reader.read(name).to(device) for name in wanted}


class TensorReader:
    """Reads the tensors of one file in their stored dtype, each when it is asked for.

    Args:
        header: From `read_header`.
        mmap: Whether `view` may map the file.

    Raises:
        CheckpointError: By its methods: the file has changed since its header was read, or a type that torch lacks.
    """

    def __init__(self, header: TensorHeader, *, mmap: bool = True) -> None:
        self.header = header
        self._mmap = mmap
        self._mapped: Any = None
        self._borrowed: Tensor | None = None

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own. Nothing else stays: no page of the file, no open file."""
        return self._read(name, _bytes)

    def borrow(self, name: str) -> Tensor:
        """A tensor to be copied from at once: the next one lies in the same memory, so that reading leaves no holes."""
        return self._read(name, self._room)

    def _room(self, num_bytes: int) -> Tensor:
        if self._borrowed is None or self._borrowed.numel() < num_bytes:
            self._borrowed = None  # before there is another one
            self._borrowed = _bytes(num_bytes)
        return self._borrowed[:num_bytes]

    def _read(self, name: str, room: Callable[[int], Tensor]) -> Tensor:
        info = self.header.tensors[name]
        dtype = torch_dtype(info.dtype)
        data = room(info.end - info.start)
        try:
            _read_into(data, self.header.path, info.start)
        except OSError as error:
            raise self._fault(error) from None
        return data.view(dtype).reshape(info.shape)

    def view(self, name: str) -> Tensor:
        """A tensor that lies in the mapped file where mapping is allowed; it keeps the mapping alive."""
        from safetensors import SafetensorError, safe_open

        torch_dtype(self.header.tensors[name].dtype)
        if not self._mmap:
            return self.read(name)
        try:
            if self._mapped is None:
                self._mapped = safe_open(self.header.path, framework="pt")
            tensor: Tensor = self._mapped.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise self._fault(error) from None
        return tensor

    def _fault(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.header.path} cannot be read ({error}). Download or copy the file again.")


def _bytes(number: int) -> Tensor:
    import torch

    return torch.empty(number, dtype=torch.uint8)


def _read_into(data: Tensor, path: Path, start: int) -> None:
    """Fill bytes from a place in a file."""
    if not data.numel():
        return
    with open(path, "rb") as file:
        file.seek(start)
        if file.readinto(data.numpy().data) < data.numel():
            raise OSError("it ends too early")


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name.

    Raises:
        CheckpointError: A dtype that torch does not have.
    """
    import torch

    table = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    if name not in table:
        raise CheckpointError(f"tensors of type {name} are not supported. Use a file in float, fp16, bf16 or fp8.")
    return table[name]


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file so that `path` is either the old file or the complete new one.

    Raises:
        OutputError: The folder cannot be written or the disk is full; `path` is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    separate = _without_shared_memory(tensors)

    def write(place: Path) -> None:
        try:
            save_file(separate, place, dict(metadata) if metadata else None)
        except SafetensorError as error:  # how a full disk arrives
            raise OSError(str(error)) from error

    write_atomically(path, write, sum(tensor.numel() * tensor.element_size() for tensor in separate.values()))


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors; those that overlap another one in memory are copied, as safetensors wants it."""
    result = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    last_end = 0
    for name, tensor in sorted(result.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < last_end:
            result[name] = tensor.clone()
        last_end = max(last_end, tensor.data_ptr() + tensor.numel() * tensor.element_size())
    return result


def save_with_torch(content: object, place: Path) -> None:
    """`torch.save`, with a full disk told as everything else tells it: by OSError."""
    import torch

    try:
        torch.save(content, place)
    except RuntimeError as error:
        raise OSError(str(error).partition("\n")[0]) from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None], num_bytes: int = 0) -> None:
    """Let `write` make a temporary file beside `path`, flush it to the disk and put it in place.

    Args:
        path: Final name.
        write: Gets the temporary path, at which an empty file lies.
        num_bytes: What it will take; checked against the free space first.

    Raises:
        OutputError: With the reason; `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(os.getpid()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # first, for some folders that nobody can write to have no space either
        if (free := shutil.disk_usage(path.parent).free) < num_bytes:
            raise OutputError(f"{path}: needs {num_bytes:,} bytes, the disk has {free:,} free. Free some space.")
        mode = temporary.stat().st_mode & 0o777  # as the umask wants it; `write` may put a file of its own in place
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). Check the folder and the disk."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """`write_atomically` of what is in memory. Where `path` is a link, the file that it leads to is written.

    Raises:
        OutputError: With the reason; what was there is as it was.
    """

    def write(place: Path) -> None:
        place.write_bytes(content)

    write_atomically(os.path.realpath(path), write, len(content))


def temporary_name(process: int) -> str:
    """A new name for what a process of this machine has not finished."""
    return f".{process}-{_machine_mark()}{secrets.token_hex(3)}.tmp"


def abandoned_files(folder: Path) -> list[Path]:
    """Temporary files of `write_atomically` that nobody finishes: their process is gone from this machine, or they have
    not changed for ten minutes."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in sorted(names) if is_abandoned(folder / name, name)]


def is_abandoned(path: Path, temporary: str) -> bool:
    """Whether what lies at `path` is unfinished and nobody finishes it, by its name from `temporary_name`."""
    name = _TEMPORARY.fullmatch(temporary)
    if name is None:
        return False
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return age > _ABANDONED_AFTER or (name[2] == _machine_mark() and _has_ended(int(name[1])))


def _machine_mark() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _has_ended(process: int) -> bool:
    if os.name == "nt":  # asking would send it a signal
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # of another user
        return False
    return False


def hash_tensors(header: TensorHeader, names: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors.

    Args:
        header: From `read_header`.
        names: {name in the file: name to hash}, so that a part has one identity whether it lies
            alone or under a prefix in a larger file. None takes all names as they are.
    """
    mapping = dict(names) if names is not None else {name: name for name in header.tensors}
    digest = hashlib.sha256()
    with open(header.path, "rb") as file:
        for name in sorted(mapping, key=lambda key: mapping[key]):
            info = header.tensors[name]
            digest.update(f"{mapping[name]} {info.dtype} {info.shape}\n".encode())
            _hash_range(file, info.start, info.end, digest)
    return digest.hexdigest()


def _hash_range(file: BinaryIO, start: int, end: int, digest: hashlib._Hash) -> None:
    file.seek(start)
    while start < end:
        chunk = file.read(min(_CHUNK, end - start))
        if not chunk:
            return
        digest.update(chunk)
        start += len(chunk)


def remembered_hash(path: str | os.PathLike[str], label: str, compute: Callable[[], str]) -> str:
    """`compute()`, or what it gave before for the same file (path, size and modification time) and label.

    Results are kept in one small file in the user's cache folder; an unreadable or unwritable one is no error.
    """
    path = Path(path).resolve()
    stat = path.stat()
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{label}"
    store = user_cache_dir() / "hashes.json"
    known = _read_json(store)
    if key in known:
        return known[key]
    value = compute()
    known = dict([*_read_json(store).items(), (key, value)][-_MAX_REMEMBERED:])
    try:
        write_atomically(store, lambda place: _dump_json(place, known))
    except OutputError:
        pass  # remembered for nothing but speed
    return value


def user_cache_dir() -> Path:
    """Where small things are remembered between runs: $EASEL_CACHE_DIR, else the platform's cache folder."""
    if given := os.environ.get("EASEL_CACHE_DIR"):
        return Path(given)
    variable, usual = ("LOCALAPPDATA", "~/AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", "~/.cache")
    folder = os.environ.get(variable) or os.path.expanduser(usual)
    if folder.startswith("~"):  # a user without a home folder, as in some containers
        folder = tempfile.gettempdir()
    return Path(folder) / "easel"


def _read_json(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}


def _dump_json(path: Path, content: Mapping[str, str]) -> None:
    path.write_text(json.dumps(content, indent=0), encoding="utf-8")
