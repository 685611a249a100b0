"""Train a LoRA (or another adapter) for Stable Diffusion 3 / 3.5. Guide: docs/sd3_train_network.md."""

from __future__ import annotations

import sys

from library.families.sd3.options import EXAMPLE, IGNORED, Sd3NetworkOptions
from library.options.entry import run_script
from library.training.network_trainer import NetworkTrainer


class Sd3NetworkTrainer(NetworkTrainer):
    """Adapters beside the MMDiT and, unless told otherwise, beside CLIP-L and CLIP-G."""

    options: Sd3NetworkOptions

    def make_family(self):  # type: ignore[no-untyped-def]
        from library.families.sd3.family import Sd3Family

        return Sd3Family.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(
        Sd3NetworkOptions,
        lambda options: Sd3NetworkTrainer(options).run(),
        argv=argv,
        prog="sd3_train_network.py",
        description="Train a LoRA for Stable Diffusion 3 / 3.5.",
        example=EXAMPLE,
        ignored=IGNORED,
    )


if __name__ == "__main__":
    sys.exit(main())
