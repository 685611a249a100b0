"""Encode the captions of a dataset once and keep the outputs of the text encoders in files. Guide: docs/caches.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.training.cache_run import TextCacheRun
from tools.cache_options import TEXT_CACHING_SCRIPT, TextCachingOptions
from tools.model_family import choose_family

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class TextCacheTool(TextCacheRun):
    """Works for the family that the options or the model file name."""

    def make_family(self) -> ModelFamily:
        """See `choose_family`; from here on the options are those of the family."""
        family, self.options = choose_family(self.options)
        return family


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(
        TextCachingOptions, lambda options: TextCacheTool(options).run(), argv=argv, **TEXT_CACHING_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
