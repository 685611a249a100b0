"""Options about the pictures: their sizes, how they are sampled, and their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.groups.sampling import SAMPLERS
from library.options.spec import OptionGroup, opt

MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class PictureOptions(OptionGroup):
    """Sizes and sampling."""

    title: ClassVar[str] = "Pictures"

    W: int | None = opt(
        None,
        "Width. Not set means 512, or 1024 for SDXL and SD3; with --image_path that picture's, in its shape.",
        unit="pixels",
        minimum=1,
    )
    H: int | None = opt(None, "Height, likewise.", unit="pixels", minimum=1)
    original_width: int | None = opt(
        None, "Width that SDXL is told the picture had before it was resized. Not set means --W.", minimum=1
    )
    original_height: int | None = opt(None, "Height, likewise.", minimum=1)
    original_width_negative: int | None = opt(
        None, "The same for the negative prompt. Not set means --original_width.", minimum=1
    )
    original_height_negative: int | None = opt(None, "Height, likewise.", minimum=1)
    crop_top: int | None = opt(None, "Rows that SDXL is told are cut off at the top. Not set means 0.", minimum=0)
    crop_left: int | None = opt(None, "Columns that SDXL is told are cut off on the left. Not set means 0.", minimum=0)
    steps: int = opt(50, "Sampling steps.", minimum=1, maximum=MAX_STEPS)
    sampler: str = opt("ddim", "How noise becomes a picture.", choices=SAMPLERS)
    scale: float = opt(7.5, "Guidance scale: how far to go from the negative prompt towards the prompt; 1 is without.")
    negative_scale: float | None = opt(
        None,
        "Guidance scale of the negative prompt. If set, guidance leads from an empty prompt towards the prompt by "
        "--scale, and away from the negative prompt by this.",
    )


@dataclass(frozen=True, kw_only=True)
class SourcePictureOptions(OptionGroup):
    """Pictures that are drawn over."""

    title: ClassVar[str] = "Image to image"

    image_path: Path | None = opt(
        None,
        "Picture to draw over, or a folder of them: the first is for the first prompt, and so on, over and over.",
    )
    mask_path: Path | None = opt(
        None, "Picture, or folder of them, that is white where --image_path is drawn over and black where it stays."
    )
    strength: float | None = opt(
        None, "How much of --image_path is drawn anew. Not set means 0.8.", unit="0-1", minimum=0, maximum=1
    )

    def check(self) -> Iterator[str]:
        if self.mask_path is not None and self.image_path is None:
            yield "--mask_path needs --image_path, the picture to draw over. Give both, or leave it out."


@dataclass(frozen=True, kw_only=True)
class PictureFileOptions(OptionGroup):
    """Where pictures go."""

    title: ClassVar[str] = "Files"

    outdir: Path = opt(Path("outputs"), "Folder for the pictures, made if need be. No file in it is replaced.")
    sequential_file_name: bool = opt(False, "Name pictures im_000001.png and so on.")
    use_original_file_name: bool = opt(False, "Name pictures as those of --image_path.")

    def check(self) -> Iterator[str]:
        if self.sequential_file_name and self.use_original_file_name:
            yield "--sequential_file_name and --use_original_file_name exclude each other. Keep one of them."
