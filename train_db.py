"""Train the whole of Stable Diffusion 1.x or 2.x on pictures of one thing. Guide: docs/train_network.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sd.options import DREAM_BOOTH_SCRIPT, DreamBoothOptions
from library.options.entry import run_script
from library.training.full_trainer import FullTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class DreamBoothTrainer(FullTrainer):
    """The U-Net and, unless told otherwise, the text encoder."""

    def make_family(self) -> ModelFamily:
        """Stable Diffusion 1.x or 2.x as the options ask for it."""
        from library.families.sd.family import SdFamily

        return SdFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        DreamBoothOptions, lambda options: DreamBoothTrainer(options).run(), argv=argv, **DREAM_BOOTH_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
