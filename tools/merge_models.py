"""Merge whole models of one family into one. Guide: docs/model_files.md.

python tools/merge_models.py --models a.safetensors b.safetensors --ratios 0.7 0.3 --output merged.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.model_files.options.merging import MERGING_SCRIPT, MergingOptions
from library.options.entry import run_script


def run(options: MergingOptions) -> None:
    """Merge the models."""
    from library.model_files.merging import merge_models

    merge_models(options.merge)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(MergingOptions, run, argv=argv, **MERGING_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
