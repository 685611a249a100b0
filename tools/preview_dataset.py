"""Write a page that shows every picture of a dataset as it will be trained. Guide: docs/look_before_you_train.md.

python tools/preview_dataset.py --dataset_config my_pictures.toml --output preview.html
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.families.sd3.preview_options import PREVIEW_SCRIPT, Sd3PreviewOptions
from library.options.entry import run_script
from library.training.looking.preview import PreviewRun


class Sd3PreviewRun(PreviewRun):
    """Captions as SD3's three encoders read them."""

    def make_family(self) -> Any:
        """SD3 as the options ask for it."""
        from library.families.sd3.family import Sd3Family

        return Sd3Family.from_options(self.options)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(Sd3PreviewOptions, lambda options: Sd3PreviewRun(options).run(), argv=argv, **PREVIEW_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
