"""Write docs/options.md from the declared options: `python -m tools.make_options_doc`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.families.sd3.options import FULL_SCRIPT, NETWORK_SCRIPT, Sd3FullOptions, Sd3NetworkOptions
from library.options.document import options_page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
SCRIPTS = ((Sd3NetworkOptions, NETWORK_SCRIPT), (Sd3FullOptions, FULL_SCRIPT))


def current_page() -> str:
    """The page as it should be."""
    return options_page(SCRIPTS)


if __name__ == "__main__":
    PAGE.write_text(current_page(), encoding="utf-8", newline="\n")
