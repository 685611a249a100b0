"""Write a caption for every picture of a folder, with Git. Takes the options of make_captions.py.

    python finetune/make_captions_by_git.py my_pictures --batch_size=8 --caption_extension=.txt

Guide: docs/captions_and_tags.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.captioning.run import CaptioningRun
from library.preparing.options.captioning import GIT_CAPTIONING_SCRIPT, GitCaptioningOptions


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        GitCaptioningOptions, lambda options: CaptioningRun(options).run(), argv=argv, **GIT_CAPTIONING_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
