"""Train a ControlNet-LLLite for SDXL. Guide: docs/train_lllite.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.detect import FOLLOW_PICTURES
from library.families.sdxl.options import SDXL_LLLITE_SCRIPT, SdxlLlliteOptions
from library.options.entry import run_script
from library.training.lllite_trainer import LlliteTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class SdxlLlliteTrainer(LlliteTrainer):
    """Modules beside the U-Net that follow a conditioning picture."""

    other_models = FOLLOW_PICTURES

    def make_family(self) -> ModelFamily:
        """SDXL as the options ask for it."""
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        SdxlLlliteOptions, lambda options: SdxlLlliteTrainer(options).run(), argv=argv, **SDXL_LLLITE_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
