"""Learn a new word for SDXL (textual inversion). Guide: docs/train_textual_inversion.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.detect import LEARN_THE_WORD
from library.families.sdxl.options import SDXL_INVERSION_SCRIPT, SdxlInversionOptions
from library.options.entry import run_script
from library.training.textual_inversion.inversion_trainer import InversionTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class SdxlInversionTrainer(InversionTrainer):
    """A word of CLIP-L and CLIP-G."""

    other_models = LEARN_THE_WORD

    def make_family(self) -> ModelFamily:
        """SDXL as the options ask for it."""
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        SdxlInversionOptions, lambda options: SdxlInversionTrainer(options).run(), argv=argv, **SDXL_INVERSION_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
