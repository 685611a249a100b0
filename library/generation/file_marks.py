"""Hashes of the files that draw, which tell later whether they are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from library.checkpoint.metadata import file_hashes
from library.tensorfile import remembered_hash

_MARK, _NETWORK = 10, 12  # digits, as A1111 shows them for models and for networks
_CHUNK = 1 << 22  # bytes


def file_mark(path: Path) -> str:
    """SHA-256 of a file, 10 digits; empty for a folder, and for what is not there."""
    return file_hashes(path).sha256[:_MARK] if path.is_file() else ""


def file_marks(paths: Iterable[str | Path | None]) -> dict[str, str]:
    """{path: hash} of those that are files."""
    marks = {str(path): file_mark(Path(path)) for path in paths if path is not None}
    return {path: mark for path, mark in marks.items() if mark}


def network_hash(path: Path) -> str:
    """The hash by which A1111 and the pages it asks know a network, 12 digits: SHA-256 of what follows the header of a
    .safetensors file, of the whole of another one."""
    if path.suffix.lower() != ".safetensors":
        return file_hashes(path).sha256[:_NETWORK]
    return remembered_hash(path, "sha256 behind the header", lambda: _behind_header(path))[:_NETWORK]


def _behind_header(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
