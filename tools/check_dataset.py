"""Check a dataset, and mend what is safe. Guide: docs/prepare_pictures.md.

python tools/check_dataset.py my_pictures --output check.html
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the toolkit is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.options.entry import run_script
from library.training.looking.check import CheckRun
from tools.check_options import CHECK_SCRIPT, CheckOptions
from tools.model_family import choose_family

if TYPE_CHECKING:
    from library.families.base import ModelFamily


class CheckTool(CheckRun):
    """Captions as the encoders of the family read them that the options or the model file name."""

    def make_family(self) -> ModelFamily:
        """See `choose_family`; from here on the options are those of the family."""
        family, self.options = choose_family(self.options)
        return family


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_script(CheckOptions, lambda options: CheckTool(options).run(), argv=argv, **CHECK_SCRIPT)


if __name__ == "__main__":
    sys.exit(main())
