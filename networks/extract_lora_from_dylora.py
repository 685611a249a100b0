"""Cut a DyLoRA into LoRA files of all the ranks that it was trained for. Guide: docs/resize_lora.md.

python networks/extract_lora_from_dylora.py --model my_dylora.safetensors --save_to cut.safetensors --unit 4
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.loras.options.resizing import CUT_DYLORA_SCRIPT, CutDyloraOptions
from library.options.entry import run_script


def run(options: CutDyloraOptions) -> None:
    """Cut the DyLoRA."""
    from library.loras.resizing_run import cut_file

    cut_file(options.cut)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_script(CutDyloraOptions, run, argv=argv, **CUT_DYLORA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
