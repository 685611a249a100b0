"""Options that all tools share which go through a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class PictureFolderOptions(OptionGroup):
    """Which pictures."""

    title: ClassVar[str] = "Pictures"

    train_data_dir: Path | None = opt(None, "Folder of the pictures.", positional=True)
    recursive: bool = opt(False, "Take the pictures of sub-folders too.")
