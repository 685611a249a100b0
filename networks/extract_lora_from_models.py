"""Make a LoRA of the difference between a tuned model and its original. Guide: docs/resize_lora.md.

python networks/extract_lora_from_models.py --model_org base.ckpt --model_tuned tuned.ckpt --save_to lora.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.extracting import EXTRACT_LORA_SCRIPT, ExtractLoraOptions
from library.options.entry import run_script


def run(options: ExtractLoraOptions) -> None:
    """Extract the LoRA."""
    from library.loras.extracting_run import extract_file

    extract_file(options.difference)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(ExtractLoraOptions, run, argv=argv, **EXTRACT_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
