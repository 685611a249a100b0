"""Put the parts of an SD3 / SD3.5 model into one file, or take such a file apart. Guide: docs/model_files.md.

python tools/merge_sd3_safetensors.py --dit sd3.5_medium.safetensors --clip_l clip_l.safetensors \
    --clip_g clip_g.safetensors --t5xxl t5xxl_fp16.safetensors --output sd3.5_medium_full.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.model_files.options.sd3_parts import SD3_PARTS_SCRIPT, Sd3PartsOptions
from library.options.entry import run_script


def run(options: Sd3PartsOptions) -> None:
    """Put together or take apart."""
    from library.model_files.sd3_parts import join_parts, split_parts

    if options.split.split is not None:
        split_parts(options.split, allow_pickle=options.join.allow_pickle)
    else:
        join_parts(options.join)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(Sd3PartsOptions, run, argv=argv, **SD3_PARTS_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
