"""Whose an output folder is: one run at a time writes to it, and files of another run are not overwritten.

The claim is a lock on a small file, held by the operating system: it ends with the process, however that ends. The
file remembers which run has written under which output name, so that the same command, started again after a crash,
is known to be the same run.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from library.checkpoint.state_folder import recover_folders
from library.errors import OptionError
from library.log import get_logger
from library.tensorfile import abandoned_files

logger = get_logger(__name__)

CLAIM = ".easel_run.json"
_MAX_BYTES = 1 << 20


class OutputClaim:
    """The claim of this process on a folder, from `take` to `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None
        self._runs: dict[str, str] = {}

    def take(self) -> None:
        """Claim the folder, and settle what a killed run has left unfinished in it.

        Raises:
            OptionError: Another run is writing to it.
            OSError: The folder cannot be written.
        """
        handle = os.open(self.folder / CLAIM, os.O_RDWR | os.O_CREAT, 0o644)
        content = _read(handle)
        if not _lock(handle):
            os.close(handle)
            raise OptionError(
                f"--output_dir: {self.folder} is in use by another run ({_holder(content)}). "
                "Wait for it, stop it, or choose another folder."
            )
        self._handle, self._runs = handle, dict(content.get("runs") or {})
        self._write()
        for line in recover_folders(self.folder):
            logger.warning("%s: %s", self.folder, line)
        for torso in abandoned_files(self.folder):
            torso.unlink(missing_ok=True)
            logger.warning("%s: removed the unfinished %s", self.folder, torso.name)

    def run_of(self, output_name: str | None) -> str | None:
        """The mark of the run that wrote under this name last."""
        return self._runs.get(output_name or "")

    def remember(self, output_name: str | None, mark: str) -> None:
        """From now on this run writes under this name."""
        self._runs[output_name or ""] = mark
        self._write()

    def release(self) -> None:
        """Let others write."""
        if self._handle is not None:
            self._write(is_held=False)
            os.close(self._handle)
            self._handle = None

    def _write(self, is_held: bool = True) -> None:
        """What cannot be noted is told: the lock itself does not depend on it."""
        if self._handle is None:
            return
        holder = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        text = json.dumps({"holder": holder if is_held else None, "runs": self._runs}).encode()
        try:
            length = os.fstat(self._handle).st_size
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, text.ljust(min(length, _MAX_BYTES)))  # never shorter for a moment than it was
            os.fsync(self._handle)
        except OSError as error:
            logger.warning("%s cannot be written (%s).", self.folder / CLAIM, error.strerror or error)


def files_of_another_run(folder: Path, names: Iterable[str], *, is_same_run: bool, is_resumed: bool) -> None:
    """Refuse to overwrite what another run has made.

    Args:
        folder: The output folder.
        names: Files that this run will write.
        is_same_run: The files are of an earlier start of this very run.
        is_resumed: The run goes on from a state.

    Raises:
        OptionError: Files exist; the first few are named.
    """
    taken = [name for name in names if (folder / name).exists()]
    if not taken or is_resumed or is_same_run:
        return
    more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
    raise OptionError(
        f"--output_name: {folder} already has {', '.join(taken[:3])}{more} of another run. "
        "Choose another --output_name or --output_dir, give --resume to continue, or --overwrite to replace them."
    )


def _read(handle: int) -> Mapping[str, Any]:
    try:
        content = json.loads(os.read(handle, _MAX_BYTES) or b"{}")
    except (OSError, ValueError):  # half written when its writer was killed
        return {}
    return content if isinstance(content, dict) else {}


def _holder(content: Mapping[str, Any]) -> str:
    holder = content.get("holder")
    if not isinstance(holder, dict):
        return "of which nothing is known"
    return f"process {holder.get('process')} on {holder.get('machine')} since {holder.get('since')}"


def _lock(handle: int) -> bool:
    """Lock without waiting. Processes that this one forks do not inherit it, and it ends with this one."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, _MAX_BYTES, os.SEEK_SET)  # beyond the content, which others shall be able to read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # how Windows, and POSIX on some systems, says that it is locked
        return False
    except OSError as error:
        logger.warning("the file system cannot lock (%s): mind that one run at a time uses a folder.", error)
    return True
