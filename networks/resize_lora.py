"""Give a LoRA smaller ranks, so that its file shrinks and it does nearly the same. Guide: docs/resize_lora.md.

python networks/resize_lora.py --model my_lora.safetensors --save_to small.safetensors --new_rank 8
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.resizing import RESIZE_LORA_SCRIPT, ResizeLoraOptions
from library.options.entry import run_script


def run(options: ResizeLoraOptions) -> None:
    """Resize the LoRA."""
    from library.loras.resizing_run import resize_file

    resize_file(options.rank)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(ResizeLoraOptions, run, argv=argv, **RESIZE_LORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
