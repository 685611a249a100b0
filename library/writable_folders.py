"""Whether files can be written into folders, tried before a model takes its minutes to load."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from library.errors import OutputError
from library.tensorfile import temporary_name


def check_folders(files: Iterable[Path]) -> None:
    """Try to write where files will be written: a temporary file is made in each folder, and removed.

    Args:
        files: What will be written. Of a link that counts to which it leads; of a folder that is not there yet, the
            nearest one that is.

    Raises:
        OutputError: A folder takes no files.
    """
    for folder in sorted({_folder_of(file) for file in files}):
        probe = folder / temporary_name(os.getpid())
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise OutputError(
                f"{folder}: no file can be written there ({error.strerror or error}). Make the folder writable, or "
                "use another."
            ) from None


def _folder_of(file: Path) -> Path:
    target = Path(os.path.realpath(file)) if os.path.islink(file) else file
    return next(folder for folder in (target.parent, *target.absolute().parents) if os.path.exists(folder))
