"""Nothing: docs/training_guide.md makes its model and its pictures itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Leave `folder` as it is."""
