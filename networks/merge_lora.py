"""Merge LoRAs into a model, or with each other. Guide: docs/merge_lora.md.

python networks/merge_lora.py --sd_model model.safetensors --models my_lora.safetensors --ratios 0.8 \
    --save_to new.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.merging import MERGE_LORA_SCRIPT, MergeLoraOptions
from library.options.entry import run_script


def run(options: MergeLoraOptions) -> None:
    """Merge into a model, or LoRAs with each other."""
    from library.loras.merging_files import merge_files
    from library.loras.merging_model import merge_into_model

    merge = merge_files if options.merge.sd_model is None else merge_into_model
    merge(options.merge, ("sd", "sdxl", "sd3"))


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(MergeLoraOptions, run, argv=argv, **MERGE_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
