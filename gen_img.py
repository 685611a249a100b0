"""Draw pictures with Stable Diffusion 1.x, 2.x, SDXL or SD3. Guide: docs/gen_img.md."""

from __future__ import annotations

import sys

from library.generation.options.scripts import GENERATION_SCRIPT, GenerationOptions
from library.options.entry import run_script


def run(options: GenerationOptions) -> None:
    """Draw what the options ask for."""
    from library.generation.run import draw_pictures
    from tools.drawing_family import drawing_family

    draw_pictures(options, drawing_family)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(GenerationOptions, run, argv=argv, **GENERATION_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
