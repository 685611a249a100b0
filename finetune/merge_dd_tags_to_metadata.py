"""Put the tags beside the pictures of a folder into a metadata file. Guide: docs/captions_and_tags.md.

python finetune/merge_dd_tags_to_metadata.py pictures meta.json
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.metadata.merge_run import merge_tags
from library.preparing.options.metadata import MERGE_TAGS_SCRIPT, MergeTagsOptions


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(MergeTagsOptions, run, argv=argv, **MERGE_TAGS_SCRIPT)


def run(options: MergeTagsOptions) -> None:
    """The work of the tool."""
    merge_tags(options.pictures, options.merge, is_verbose=options.logging.debug)


if __name__ == "__main__":
    sys.exit(main())
