"""Train the whole of Stable Diffusion 1.x or 2.x. Guide: docs/train_network.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sd.options import FINE_TUNE_SCRIPT, FineTuneOptions
from library.options.entry import run_script
from library.training.full_trainer import FullTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class FineTuneTrainer(FullTrainer):
    """The U-Net and, on request, the text encoder."""

    def make_family(self) -> ModelFamily:
        """Stable Diffusion 1.x or 2.x as the options ask for it."""
        from library.families.sd.family import SdFamily

        return SdFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(FineTuneOptions, lambda options: FineTuneTrainer(options).run(), argv=argv, **FINE_TUNE_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
