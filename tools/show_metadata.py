"""Show what a weights file says about itself, or write a copy that tells nothing personal. Guide: docs/metadata.md.

python tools/show_metadata.py --model output/my_lora.safetensors
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.preparing.options.file_metadata import SHOW_METADATA_SCRIPT, ShowMetadataOptions


def run(options: ShowMetadataOptions) -> None:
    """Show it on stdout; what else there is to say goes to the log."""
    from library.preparing.file_metadata import shown_metadata

    text = shown_metadata(options.metadata)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text if options.metadata.summary else _for_console(text), flush=True)
    except BrokenPipeError:  # whoever reads it has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _for_console(text: str) -> str:
    """JSON with signs that the console does not have written as JSON's escapes."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
        return text
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=4)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(ShowMetadataOptions, run, argv=argv, **SHOW_METADATA_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
