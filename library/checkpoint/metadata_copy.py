"""A safetensors file with other metadata: its tensors stay as they are, byte for byte, and are never all in memory.

The hashes that web interfaces know a network by (`metadata.tensor_hashes`) are computed from the file alike: they are
those of the file that the safetensors package would write, with only the ss_* part of the metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from library.errors import CheckpointError
from library.tensorfile import TensorHeader, TensorInfo, write_atomically

MODEL_HASH, LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
_CHUNK = 1 << 22
_WINDOW = slice(0x100000, 0x110000)  # bytes of the file that the legacy hash looks at
_ORDER = (  # in which the safetensors package writes types
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)


def copy_with_metadata(header: TensorHeader, target: Path, metadata: Mapping[str, str]) -> None:
    """Write a copy of a file; it may take the place of the file itself. A link stays one: what it leads to is written.

    Args:
        header: Of the file.
        target: The file to write.
        metadata: What the copy says; hashes that the file has are computed anew.

    Raises:
        CheckpointError: The file cannot be read any more; `target` is as it was.
        OutputError: The copy cannot be written; `target` is as it was.
    """
    metadata = {**metadata, **_hashes(header, metadata)}
    start = _data_start(header.path)
    table = {name: _entry(info, info.start - start) for name, info in header.tensors.items()}
    written = _header_bytes({"__metadata__": metadata, **table} if metadata else table)
    size = header.path.stat().st_size

    def write(place: Path) -> None:
        with open(header.path, "rb") as source, open(place, "wb") as file:
            file.write(written)
            for chunk in _chunks(source, header.path, start, size):
                file.write(chunk)

    write_atomically(os.path.realpath(target), write, size - start + len(written))


def _hashes(header: TensorHeader, metadata: Mapping[str, str]) -> dict[str, str]:
    if not metadata.keys() & {MODEL_HASH, LEGACY_HASH}:
        return {}
    found = dict(zip((MODEL_HASH, LEGACY_HASH), stored_hashes(header, metadata), strict=True))
    return {name: value for name, value in found.items() if name in metadata}


def stored_hashes(header: TensorHeader, metadata: Mapping[str, str]) -> tuple[str, str]:
    """sshs_model_hash and sshs_legacy_hash of a file's tensors with the ss_* part of `metadata`.

    Raises:
        CheckpointError: The file cannot be read any more, or has tensors of an unknown type.
    """
    recorded = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    ordered = dict(sorted(header.tensors.items(), key=lambda item: (_rank(item[1], header.path), item[0])))
    table, end = dict[str, Any](), 0
    for name, info in ordered.items():
        table[name] = _entry(info, end)
        end += info.end - info.start
    place = len(_header_bytes({"__metadata__": recorded, **table}))
    model, legacy = hashlib.sha256(), hashlib.sha256()
    with open(header.path, "rb") as file:
        for info in ordered.values():
            for chunk in _chunks(file, header.path, info.start, info.end):
                model.update(chunk)
                legacy.update(chunk[max(0, _WINDOW.start - place) : max(0, _WINDOW.stop - place)])
                place += len(chunk)
    return model.hexdigest(), legacy.hexdigest()[:8]


def _rank(info: TensorInfo, path: Path) -> int:
    if info.dtype not in _ORDER:
        raise CheckpointError(f"{path}: tensors of type {info.dtype} are not known here. Give --remove {MODEL_HASH}.")
    return _ORDER.index(info.dtype)


def _entry(info: TensorInfo, start: int) -> dict[str, Any]:
    return {
        "dtype": info.dtype,
        "shape": list(info.shape),
        "data_offsets": [start, start + info.end - info.start],
    }


def _header_bytes(table: Mapping[str, Any]) -> bytes:
    """Length and JSON of a header, padded to a multiple of 8 bytes."""
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _data_start(path: Path) -> int:
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _chunks(file: BinaryIO, path: Path, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end:
        try:
            chunk = file.read(min(_CHUNK, end - start))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error}). Check the drive.") from None
        if not chunk:
            raise CheckpointError(f"{path} became shorter while it was read. Start again.")
        yield chunk
        start += len(chunk)
