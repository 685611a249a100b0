"""Learn a new word for Stable Diffusion 3 / 3.5 (textual inversion). Guide: docs/train_textual_inversion.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.detect import LEARN_THE_WORD
from library.families.sd3.options import INVERSION_SCRIPT, Sd3InversionOptions
from library.options.entry import run_script
from library.training.textual_inversion.inversion_trainer import InversionTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class Sd3InversionTrainer(InversionTrainer):
    """A word of CLIP-L and CLIP-G and, on request, of T5."""

    other_models = LEARN_THE_WORD

    def make_family(self) -> ModelFamily:
        """SD3 as the options ask for it."""
        from library.families.sd3.family import Sd3Family

        return Sd3Family.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        Sd3InversionOptions, lambda options: Sd3InversionTrainer(options).run(), argv=argv, **INVERSION_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
