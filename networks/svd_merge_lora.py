"""Merge LoRAs with each other to a LoRA of another rank. Guide: docs/merge_lora.md.

python networks/svd_merge_lora.py --models a.safetensors b.safetensors --ratios 0.6 1.0 --new_rank 16 \
    --save_to c.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.merging import SVD_MERGE_LORA_SCRIPT, SvdMergeLoraOptions
from library.options.entry import run_script


def run(options: SvdMergeLoraOptions) -> None:
    """Merge LoRAs of any family."""
    from library.loras.merging_files import merge_by_svd

    merge_by_svd(options.merge, ("sd", "sdxl", "sd3"))


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(SvdMergeLoraOptions, run, argv=argv, **SVD_MERGE_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
