"""Train the whole of Stable Diffusion 3 / 3.5. Guide: docs/sd3_train.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sd3.options import FULL_SCRIPT, Sd3FullOptions
from library.options.entry import run_script
from library.training.full_trainer import FullTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class Sd3FullTrainer(FullTrainer):
    """The MMDiT and, on request, CLIP-L, CLIP-G and T5."""

    def make_family(self) -> ModelFamily:
        """SD3 as the options ask for it."""
        from library.families.sd3.family import Sd3Family

        return Sd3Family.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(Sd3FullOptions, lambda options: Sd3FullTrainer(options).run(), argv=argv, **FULL_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
