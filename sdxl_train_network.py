"""Train a LoRA (or another adapter) for SDXL. Guide: docs/sdxl.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from library.families.sdxl.options import SDXL_NETWORK_SCRIPT, SdxlNetworkOptions
from library.options.entry import run_script
from library.training.network_trainer import NetworkTrainer

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class SdxlNetworkTrainer(NetworkTrainer):
    """Adapters beside the U-Net and, unless told otherwise, beside CLIP-L and CLIP-G."""

    def make_family(self) -> ModelFamily:
        """SDXL as the options ask for it."""
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        SdxlNetworkOptions, lambda options: SdxlNetworkTrainer(options).run(), argv=argv, **SDXL_NETWORK_SCRIPT
    )


if __name__ == "__main__":
    sys.exit(main())
