"""Show what a LoRA is, how strong it is in each block, and whether its numbers are sound. Guide: docs/resize_lora.md.

python networks/check_lora_weights.py my_lora.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.looking import CHECK_LORA_SCRIPT, CheckLoraOptions
from library.options.entry import run_script


def run(options: CheckLoraOptions) -> int:
    """Look at the LoRA."""
    from library.loras.weight_report import report_file

    return report_file(options.look)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(CheckLoraOptions, run, argv=argv, **CHECK_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
