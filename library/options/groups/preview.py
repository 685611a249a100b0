"""Options of the preview page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(OptionGroup):
    """The page that shows what will be trained."""

    title: ClassVar[str] = "Preview"

    output: Path = opt(Path("preview.html"), "The page to write: one HTML file with everything inside.")
    max_pictures: int | None = opt(
        None,
        "Show at most this many pictures, evenly spread, and all that cannot be used. Not set means all.",
        minimum=1,
    )
