"""Draw pictures with SDXL. Guide: docs/gen_img.md."""

from __future__ import annotations

import sys

from library.generation.options.scripts import SDXL_GENERATION_SCRIPT, SdxlGenerationOptions
from library.options.entry import run_script


def run(options: SdxlGenerationOptions) -> None:
    """Draw what the options ask for."""
    from library.generation.run import draw_pictures
    from tools.drawing_family import drawing_family

    draw_pictures(options, drawing_family)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(SdxlGenerationOptions, run, argv=argv, **SDXL_GENERATION_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
