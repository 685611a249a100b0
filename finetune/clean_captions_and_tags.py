"""Mend the captions and tags of a metadata file. Guide: docs/captions_and_tags.md.

python finetune/clean_captions_and_tags.py meta.json meta_clean.json
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.metadata.clean_run import clean_file
from library.preparing.options.metadata import CLEAN_SCRIPT, CleanOptions


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(CleanOptions, run, argv=argv, **CLEAN_SCRIPT)


def run(options: CleanOptions) -> None:
    """The work of the tool."""
    clean_file(options.files, is_verbose=options.logging.debug)


if __name__ == "__main__":
    sys.exit(main())
