"""Train a LoRA (or another adapter) for Stable Diffusion 3 / 3.5. Guide: docs/sd3_train_network.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.entry import run_script
from library.training.network_trainer import NetworkTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class Sd3NetworkTrainer(NetworkTrainer):
    """Adapters beside the MMDiT and, unless told otherwise, beside CLIP-L and CLIP-G."""

    def make_family(self) -> ModelFamily:
        """SD3 as the options ask for it."""
        from library.families.sd3.family import Sd3Family

        return Sd3Family.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(Sd3NetworkOptions, lambda options: Sd3NetworkTrainer(options).run(), argv=argv, **NETWORK_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
