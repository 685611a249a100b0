"""Write smaller copies of pictures, by area, in one or several resolutions. Guide: docs/prepare_pictures.md.

python tools/resize_images_to_resolution.py photos smaller --max_resolution 1024x1024 --copy_associated_files
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.options.resizing import RESIZING_SCRIPT, ResizingOptions


def run(options: ResizingOptions) -> None:
    """Resize the pictures."""
    from library.preparing.resizing.run import resize_folder

    resize_folder(options.resize)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(ResizingOptions, run, argv=argv, **RESIZING_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
