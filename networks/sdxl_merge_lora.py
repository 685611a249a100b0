"""Merge LoRAs into an SDXL model, or with each other. Guide: docs/merge_lora.md.

python networks/sdxl_merge_lora.py --sd_model sdxl.safetensors --models my_lora.safetensors --ratios 0.8 \
    --save_to new.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.merging import SDXL_MERGE_LORA_SCRIPT, FamilyMergeLoraOptions
from library.options.entry import run_script


def run(options: FamilyMergeLoraOptions) -> None:
    """Merge into a model, or LoRAs with each other."""
    from library.loras.merging_files import merge_files
    from library.loras.merging_model import merge_into_model

    merge = merge_files if options.merge.sd_model is None else merge_into_model
    merge(options.merge, ("sdxl",))


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(FamilyMergeLoraOptions, run, argv=argv, **SDXL_MERGE_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
