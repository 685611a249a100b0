"""Write the tags that an ONNX tagger finds in pictures into text or metadata files. Guide: docs/captions_and_tags.md.

python finetune/tag_images_by_wd14_tagger.py pictures --batch_size 8 --remove_underscore
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.options.tagging import TAGGING_SCRIPT, TaggingOptions


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(TaggingOptions, _run, argv=argv, **TAGGING_SCRIPT)


def _run(options: TaggingOptions) -> None:
    from library.preparing.tagging.run import tag_pictures

    tag_pictures(options)


if __name__ == "__main__":
    sys.exit(main())
