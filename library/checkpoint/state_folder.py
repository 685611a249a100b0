"""A folder of files that is either complete or not there: what a run needs to be continued.

The files are written beside, into a folder of another name; the last of them is a manifest with their lengths and
hashes; then the folder takes its name. Whoever reads one checks the manifest first, so that what was cut off is never
taken for whole. What a kill has left under another name is settled by `recover_folders` at the next start. Models
that are folders are written in the same way; their index is the last file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import CheckpointError, OutputError
from library.tensorfile import is_abandoned, temporary_name

MANIFEST = "manifest.json"
MODEL_INDEX = "model_index.json"  # of a folder that is not a state but a model, as diffusers reads it
FORMAT = 1
_CHUNK = 1 << 22
_OTHER = "Continue from another state, or leave --resume out."
_REPLACED = ".replaced"
_REMOVED = ".removed"
_UNFINISHED = re.compile(r"\.(?P<name>.+?)(?P<end>\.replaced|\.removed|\.\d+-[0-9a-f]{12}\.tmp)")


@dataclass(frozen=True)
class StateFolder:
    """A complete state.

    Attributes:
        path: The folder.
        about: What its manifest says of it beside the files; JSON.
    """

    path: Path
    about: Mapping[str, Any]


def write_folder(
    path: Path, writers: Mapping[str, Callable[[Path], None]], about: Mapping[str, Any], num_bytes: int = 0
) -> None:
    """Write a folder so that `path` is either what it was or the complete new one.

    Args:
        path: Final name.
        writers: {file name: writes it to the path it is given}.
        about: JSON that the manifest keeps.
        num_bytes: What it will take; checked against the free space first.

    Raises:
        OutputError: The folder cannot be written, or the disk is full; `path` is as it was.
    """

    def write(place: Path) -> None:
        for name, write_file in writers.items():
            write_file(place / name)
            _flush(place / name)
        manifest = {"format": FORMAT, "about": dict(about), "files": {name: _mark(place / name) for name in writers}}
        (place / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _flush(place / MANIFEST)

    write_whole_folder(path, write, num_bytes)


def write_whole_folder(path: Path, write: Callable[[Path], None], num_bytes: int = 0) -> None:
    """Let `write` fill a new folder, and put it in place of what is at `path`.

    Args:
        path: Final name.
        write: Gets an empty folder, and flushes every file to the disk. The last one is `MANIFEST` or `MODEL_INDEX`,
            which say that the folder is complete.
        num_bytes: What it will take; checked against the free space first.

    Raises:
        OutputError: The folder cannot be written, or the disk is full; `path` is as it was.
    """
    place = path.with_name(f".{path.name}{temporary_name(os.getpid())}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir()  # first, for some folders that nobody can write to have no space either
        if (free := shutil.disk_usage(path.parent).free) < num_bytes:
            raise OutputError(f"{path}: needs {num_bytes:,} bytes, the disk has {free:,} free. Free some space.")
        write(place)
        for folder in (*(inner for inner in place.rglob("*") if inner.is_dir()), place):
            _flush_folder(folder)
        _put_in_place(place, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). Check the folder and the disk."
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def open_folder(path: Path, what: str = "--resume") -> StateFolder:
    """Check a folder from its manifest: every file is there, as long as it was, with the bytes that it had.

    Args:
        path: The folder.
        what: How it is called in an error.

    Raises:
        CheckpointError: It is missing, incomplete or damaged; names the file.
    """
    if not path.is_dir():
        raise CheckpointError(f"{what}: {path} is not a folder. {_states_nearby(path)}")
    about, files = _read_manifest(path, what)
    for name, mark in files.items():
        try:
            found = _mark(path / name)
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{what}: {path / name} cannot be read ({reason}). {_OTHER}") from None
        if found != mark:
            raise CheckpointError(f"{what}: {path / name} {_difference(found, mark)}. {_OTHER}")
    return StateFolder(path, about)


def glance(path: Path) -> Mapping[str, Any] | None:
    """What the manifest of a folder says of it, without reading the files; None where there is no good manifest."""
    try:
        return _read_manifest(path, "")[0]
    except CheckpointError:
        return None


def remove_folder(path: Path) -> None:
    """Remove a state or a model so that no half of it is ever under its name.

    Raises:
        OSError: It cannot be removed.
    """
    aside = path.with_name(f".{path.name}{_REMOVED}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside)


def recover_folders(folder: Path) -> list[str]:
    """Settle what killed writers have left in a folder that only this process writes to.

    A state that was complete and had not got its name yet gets it, where no newer one has it; torsos are removed.

    Returns:
        A sentence for each.
    """
    told = []
    # what stepped aside comes after what should take its place
    for path in sorted(folder.iterdir(), key=lambda path: (path.name.endswith(_REPLACED), path.name)):
        name = _unfinished_name(path)
        if name is None:
            continue
        final = path.with_name(name)
        if not path.name.endswith(_REMOVED) and not final.exists() and _is_complete(path):
            os.replace(path, final)
            told.append(f"{final} was complete and has got its name")
        else:
            shutil.rmtree(path, ignore_errors=True)
            told.append(f"removed the unfinished {path.name}")
    return told


def _unfinished_name(path: Path) -> str | None:
    """The name that a folder should have got or had, if its writer is gone; else None."""
    found = _UNFINISHED.fullmatch(path.name)
    if found is None or not path.is_dir():
        return None
    if found["end"] not in (_REPLACED, _REMOVED) and not is_abandoned(path, found["end"]):
        return None
    return found["name"]


def _is_complete(path: Path) -> bool:
    if (path / MODEL_INDEX).is_file():
        return True
    try:
        open_folder(path)
    except CheckpointError:
        return False
    return True


def _read_manifest(path: Path, what: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{what}: {path} has format {content['format']}, this version reads {FORMAT}. "
                "Use the version it is from."
            )
        return dict(content["about"]), dict(content["files"])
    except FileNotFoundError:
        raise CheckpointError(f"{what}: {path} has no {MANIFEST}, so it is not a complete state. {_OTHER}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{what}: {path / MANIFEST} is damaged. {_OTHER}") from None


def _states_nearby(path: Path) -> str:
    folder = path.parent
    names = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    return f"States in {folder}: {', '.join(names[:5])}." if names else "Check the path."


def _mark(path: Path) -> list[Any]:
    """Length and hash of a file, as JSON gives them back."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]


def _difference(found: list[Any], wanted: list[Any]) -> str:
    if found[0] != wanted[0]:
        return f"has {found[0]:,} of {wanted[0]:,} bytes"
    return "is damaged: its bytes are not those that were written"


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(place: Path, path: Path) -> None:
    """At every moment one of the two is there, complete: the old one steps aside under a name that is looked for."""
    aside = path.with_name(f".{path.name}{_REPLACED}")
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    os.replace(place, path)
    _flush_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)
