"""Learn a new word for Stable Diffusion 1.x or 2.x (textual inversion). Guide: docs/train_textual_inversion.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.detect import LEARN_THE_WORD
from library.families.sd.options import SD_INVERSION_SCRIPT, SdInversionOptions
from library.options.entry import run_script
from library.training.textual_inversion.inversion_trainer import InversionTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class SdInversionTrainer(InversionTrainer):
    """A word of the text encoder."""

    other_models = LEARN_THE_WORD

    def make_family(self) -> ModelFamily:
        """Stable Diffusion 1.x or 2.x as the options ask for it."""
        from library.families.sd.family import SdFamily

        return SdFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        SdInversionOptions, lambda options: SdInversionTrainer(options).run(), argv=argv, **SD_INVERSION_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
