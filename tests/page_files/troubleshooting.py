"""What docs/training_guide.md leaves for docs/troubleshooting.md: a tiny drawing model, pictures, prompts, settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from examples.drawing_sd3 import subject
from examples.tiny_sd3.make import build_tiny_sd3
from tests.end_to_end.test_documented_commands import ROOT, read_blocks


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into `folder`."""
    build_tiny_sd3(folder / "drawing")
    subject.main([str(folder / "toy"), "4"])
    for block in read_blocks(ROOT / "docs" / "training_guide.md"):
        if "file" in block.notes:
            (folder / block.notes["file"]).write_text(block.file_in_tests(), encoding="utf-8")
