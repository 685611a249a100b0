"""Convert a whole model between one file and a diffusers folder, in both directions. Guide: docs/model_files.md.

python tools/convert_diffusers20_original_sd.py sd_xl_base_1.0.safetensors sdxl_folder --save_precision_as fp16
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.model_files.options.converting import CONVERTING_SCRIPT, ConvertingOptions
from library.options.entry import run_script


def run(options: ConvertingOptions) -> None:
    """Convert the model."""
    from library.model_files.converting import convert_model

    convert_model(options.conversion)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(ConvertingOptions, run, argv=argv, **CONVERTING_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
