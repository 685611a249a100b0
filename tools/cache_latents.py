"""Encode the pictures of a dataset once and keep the latents in files. Guide: docs/caches.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.training.cache_run import LatentCacheRun
from tools.cache_options import LATENT_CACHING_SCRIPT, LatentCachingOptions
from tools.model_family import choose_family

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class LatentCacheTool(LatentCacheRun):
    """Works for the family that the options or the model file name."""

    def make_family(self) -> ModelFamily:
        """See `choose_family`; from here on the options are those of the family."""
        family, self.options = choose_family(self.options)
        return family


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(
        LatentCachingOptions, lambda options: LatentCacheTool(options).run(), argv=argv, **LATENT_CACHING_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
