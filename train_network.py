"""Train a LoRA (or another adapter) for Stable Diffusion 1.x or 2.x. Guide: docs/train_network.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sd.options import SD_NETWORK_SCRIPT, SdNetworkOptions
from library.options.entry import run_script
from library.training.network_trainer import NetworkTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class SdNetworkTrainer(NetworkTrainer):
    """Adapters beside the U-Net and, unless told otherwise, beside the text encoder."""

    def make_family(self) -> ModelFamily:
        """Stable Diffusion 1.x or 2.x as the options ask for it."""
        from library.families.sd.family import SdFamily

        return SdFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(SdNetworkOptions, lambda options: SdNetworkTrainer(options).run(), argv=argv, **SD_NETWORK_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
