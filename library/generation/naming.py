"""Names of the files that pictures are written to. No file is replaced."""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from library.errors import OptionError, OutputError
from library.generation.prompt_lines import shortened

_SEQUENTIAL = re.compile(r"im_(\d{6,})\.png")
_FORBIDDEN = re.compile(r'[<>:"|?*/\\\x00-\x1f]')
_DEVICES = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)  # of Windows
_MAX_BYTES = 200  # file systems take 255, and numbers follow


class FileNames:
    """Names for the pictures of a run.

    Args:
        folder: Of all pictures.
        is_sequential: im_000001.png and so on, behind what is there.
        uses_original: The name of the picture that is drawn over.
    """

    def __init__(self, folder: Path, *, is_sequential: bool = False, uses_original: bool = False) -> None:
        self.folder, self.is_sequential, self.uses_original = folder, is_sequential, uses_original
        self._started = time.strftime("%Y%m%d%H%M%S")
        self._numbers: Iterator[int] = itertools.count()

    def prepare(self) -> None:
        """Make the folder and see whether a file can be written, before anything is drawn.

        Raises:
            OutputError: It cannot.
            OptionError: It is a file.
        """
        if self.folder.is_file():
            raise OptionError(f"--outdir: {self.folder} is a file. Give a folder.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OutputError(
                f"--outdir: {self.folder} cannot be written ({error.strerror or error}). Give another folder."
            ) from None
        if self.is_sequential:
            self._numbers = itertools.count(self._last_number() + 1)

    def next(self, seed: int, *, asked: str | None = None, original: str | None = None) -> Path:
        """The file of the next picture.

        Args:
            seed: Of the picture.
            asked: By the prompt's line.
            original: Path of the picture that is drawn over.

        Raises:
            OptionError: The name that a line asks for is none.
        """
        number = next(self._numbers)
        if asked:
            return self._unused(safe_name(asked))
        if self.uses_original and original:
            return self._unused(Path(original).stem)
        stem = f"im_{number:06d}" if self.is_sequential else f"im_{self._started}_{number:03d}_{seed}"
        return self._unused(stem)

    def first_of(self, path: Path) -> Path:
        """The file of the first pass of a picture."""
        return self._unused(f"{path.stem}_1st")

    def _last_number(self) -> int:
        found = [_SEQUENTIAL.fullmatch(path.name) for path in self.folder.iterdir()]
        return max((int(match[1]) for match in found if match), default=0)

    def _unused(self, stem: str) -> Path:
        names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(1)))
        return next(path for name in names if not (path := self.folder / f"{name}.png").exists())


def safe_name(asked: str) -> str:
    """The name that a line asks for, without ending.

    Raises:
        OptionError: It is the name of no file in the folder, here or on Windows.
    """
    stem = asked.strip().removesuffix(".png")
    if len(stem.encode()) > _MAX_BYTES:
        raise OptionError(f"--f {shortened(asked, 40)}: this name is too long. Use up to {_MAX_BYTES} letters.")
    is_of_device = _DEVICES.fullmatch(stem.partition(".")[0].strip()) is not None
    if not stem or stem in (".", "..") or is_of_device or _FORBIDDEN.search(stem):
        raise OptionError(f'--f {asked}: this is no name for a file. Use letters, numbers, "_" and "-".')
    return stem
