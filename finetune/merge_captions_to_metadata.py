"""Put the captions beside the pictures of a folder into a metadata file. Guide: docs/captions_and_tags.md.

python finetune/merge_captions_to_metadata.py pictures meta.json --caption_extension .txt
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.metadata.merge_run import merge_captions
from library.preparing.options.metadata import MERGE_CAPTIONS_SCRIPT, MergeCaptionsOptions


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(MergeCaptionsOptions, run, argv=argv, **MERGE_CAPTIONS_SCRIPT)


def run(options: MergeCaptionsOptions) -> None:
    """The work of the tool."""
    merge_captions(options.pictures, options.merge, is_verbose=options.logging.debug)


if __name__ == "__main__":
    sys.exit(main())
