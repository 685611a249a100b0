"""Write a LoRA in the layout that another program reads, or check which programs read it. Guide: docs/convert_lora.md.

python networks/convert_lora.py my_lora.safetensors for_diffusers.safetensors --to diffusers --verify_export
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.converting import CONVERT_LORA_SCRIPT, ConvertLoraOptions
from library.options.entry import run_script


def run(options: ConvertLoraOptions) -> int:
    """Convert or check the file."""
    from library.loras.converting_run import convert_file

    return convert_file(options.conversion)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(ConvertLoraOptions, run, argv=argv, **CONVERT_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
