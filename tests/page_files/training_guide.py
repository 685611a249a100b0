"""A tiny model under the name of the drawing one, for docs/training_guide.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from examples.tiny_sd3.make import build_tiny_sd3


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put it into `folder`."""
    build_tiny_sd3(folder / "tiny_drawing")
