"""Nothing: the benchmarks of docs/performance.md make what they measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Leave `folder` as it is."""
