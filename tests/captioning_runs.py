"""Runs of finetune/make_captions.py in this process, on a folder of pictures and with tiny captioners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune import make_captions
from tests import tiny_captioners

NUMBER = 6
SHORT = ("--device=cpu", "--max_length=12")

Captions = Mapping[str, str]


def captioners(temporary: pytest.TempPathFactory) -> Callable[[str], Path]:
    """captioners(...)("blip") and so on: the folder of a tiny captioner, built once, which tests leave as it is."""
    built: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in built:
            built[kind] = getattr(tiny_captioners, f"build_{kind}")(temporary.mktemp(kind))
        return built[kind]

    return build


def make_pictures(folder: Path, number: int = NUMBER) -> Path:
    """Pictures of different colours and sizes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(random.integers(0, 255, (4 + index % 5, 6, 3), np.uint8))
        coarse.resize((60 + 20 * (index % 6), 50), Image.Resampling.NEAREST).save(folder / f"p{index}.png")
    return folder


def captioned(folder: Path, model: Path, *flags: str, script: Any = make_captions, code: int = 0) -> Captions:
    """Run the script; what the caption files hold afterwards, by the names of their pictures."""
    assert script.main([str(folder), f"--model={model}", *SHORT, *flags]) == code
    return captions_in(folder)


def captions_in(folder: Path) -> Captions:
    """What the caption files hold, by the names of their pictures."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.caption"))}


def refused(capsys: pytest.CaptureFixture[str], folder: Path, model: Path | str, *flags: str, code: int = 2) -> str:
    """The one error that a run ends with."""
    capsys.readouterr()
    assert make_captions.main([str(folder), f"--model={model}", "--device=cpu", *flags]) == code
    error = capsys.readouterr().err.rpartition("error: ")[2].strip()
    assert "\n" not in error and not list(folder.rglob("*.caption"))
    return error


class AtCaption(logging.Handler):
    """Does something in the middle of a run with --debug, when the caption of a picture is told. Used in a `with`.

    Args:
        number: Of the caption.
        action: What is done.
    """

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        super().__init__()
        self._left, self._action = number, action
        self._logger = logging.getLogger("easel.library.preparing.captioning.run")

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line of the log."""
        self._left -= ".png: " in record.getMessage()
        if self._left == 0:
            self._left = -1
            self._action()

    def __enter__(self) -> None:
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
