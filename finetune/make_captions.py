"""Write a caption for every picture of a folder, with BLIP or any other captioner of transformers.

    python finetune/make_captions.py my_pictures --batch_size=8 --caption_extension=.txt

Guide: docs/captions_and_tags.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.captioning.run import CaptioningRun
from library.preparing.options.captioning import CAPTIONING_SCRIPT, CaptioningOptions


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(CaptioningOptions, lambda options: CaptioningRun(options).run(), argv=argv, **CAPTIONING_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
