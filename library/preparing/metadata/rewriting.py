"""From one metadata file to another, or to itself, so that nothing that a person wrote in either is lost unseen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.data.problems import first_names
from library.errors import DatasetError
from library.log import get_logger
from library.preparing.metadata.metadata_files import Entries, check_output, read_metadata_file, write_metadata_file

logger = get_logger(__name__)

_MEASURED = ("image_size", "train_resolution")  # keys whose values tools find out again
_OUT = "OUT_JSON"


class Rewriting:
    """Reads a metadata file, and writes what was made of it.

    Args:
        source: The file that is read; None is the one that is written, if it is there.
        name: How the user gave the source, for messages.
        out: The file that is written; it may be the source.
        is_overwrite: What is only in the file that is there may go, if that is not the source.

    Raises:
        OptionError: `out` cannot be written there.
    """

    def __init__(self, source: Path | None, name: str, out: Path, *, is_overwrite: bool) -> None:
        check_output(out)
        self._source, self._out, self._is_overwrite = source, out, is_overwrite
        self._name = name if source is not None else _OUT
        self._is_same = source is None or _are_same(source, out)
        self._marks = {} if self._is_same else {(_OUT, out): _mark(out)}

    def read(self) -> Entries:
        """The entries of the source as they are now.

        Raises:
            DatasetError: It cannot be read, or something in it is wrong.
        """
        file = self._source or self._out
        self._marks[self._name, file] = _mark(file)
        return {} if self._source is None and not file.exists() else read_metadata_file(file, self._name)

    def refuse_loss(self, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """See that what will be written lacks nothing that only the file has which is there.

        Args:
            entries: What will be written. The source may lose anything: what becomes of it is the tool's affair.

        Returns:
            Names of what it lacks all the same, as that was allowed.

        Raises:
            DatasetError: It does, and that was not allowed; or what is there is no metadata file.
        """
        lost = self._lost(entries)
        if lost and not self._is_overwrite:
            raise DatasetError(
                f"{_OUT} {self._out} is there already and has what the new one would not have ({len(lost)}): "
                f"{first_names(lost)}. Put it into {self._source}, give --overwrite to let it go, or name another file."
            )
        return lost

    def write(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Write all entries, whole or not at all.

        Raises:
            DatasetError: A file was changed after it was read, something would be lost, or an entry is wrong.
            OutputError: The file cannot be written; what was there is as it was.
        """
        changed = [f"{name} {file}" for (name, file), mark in self._marks.items() if _mark(file) != mark]
        if changed:
            raise DatasetError(
                f"{' and '.join(changed)} changed while this ran, so nothing was written. Give the same command again."
            )
        if lost := self.refuse_loss(entries):
            logger.warning(
                "%s is written over, with what only it had: %d (%s).", self._out, len(lost), first_names(lost)
            )
        write_metadata_file(self._out, entries)

    def _lost(self, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Names of entries that only the file has which is there, and of others with the keys of what goes."""
        if self._is_same or not os.path.lexists(self._out):
            return []
        lost = []
        for picture, values in read_metadata_file(self._out, _OUT).items():
            if picture not in entries:
                lost.append(picture)
            elif keys := [key for key, value in values.items() if _goes(key, value, entries[picture])]:
                lost.append(f"{picture} ({', '.join(keys)})")
        return lost


def _goes(key: str, value: object, new: Mapping[str, Any]) -> bool:
    """Whether the value of an entry is lost. An empty one may be filled, and what was measured is measured anew."""
    if key in _MEASURED:
        return False
    return key not in new or (value not in (None, "") and bool(value != new[key]))


def _are_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _mark(file: Path) -> bytes | None:
    """By which the content of a file is known again; None where there is none that can be read."""
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:  # why, is told where it is read
        return None
