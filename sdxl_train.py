"""Train the whole of SDXL. Guide: docs/sdxl.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sdxl.options import SDXL_FULL_SCRIPT, SdxlFullOptions
from library.options.entry import run_script
from library.training.full_trainer import FullTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class SdxlFullTrainer(FullTrainer):
    """The U-Net and, on request, CLIP-L and CLIP-G."""

    def make_family(self) -> ModelFamily:
        """SDXL as the options ask for it."""
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(SdxlFullOptions, lambda options: SdxlFullTrainer(options).run(), argv=argv, **SDXL_FULL_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
