"""Draw pictures with SD3 or SD3.5. Guide: docs/gen_img.md."""

from __future__ import annotations

import sys

from library.generation.options.scripts import SD3_GENERATION_SCRIPT, Sd3GenerationOptions
from library.options.entry import run_script


def run(options: Sd3GenerationOptions) -> None:
    """Draw what the options ask for."""
    from library.generation.run import draw_pictures
    from tools.drawing_family import drawing_family

    draw_pictures(options, drawing_family)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(Sd3GenerationOptions, run, argv=argv, **SD3_GENERATION_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
