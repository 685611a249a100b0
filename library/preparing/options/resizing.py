"""Options of the script that resizes pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt
from library.records import Size

_OTHER_SIZE = re.compile(r"([1-9]\d{0,5})(?:\s*,\s*([1-9]\d{0,5}))?")
_SIZE = re.compile(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})")


def _meant_size(text: str) -> str | None:
    """What is meant by "512", or by "512,512" as other scripts want it."""
    one = _OTHER_SIZE.fullmatch(text.strip())
    return f"{one[1]}x{one[2] or one[1]}" if one else None


@dataclass(frozen=True, kw_only=True)
class ResizeOptions(OptionGroup):
    """Which pictures, and what becomes of them."""

    title: ClassVar[str] = "Resizing"

    src_img_folder: Path | None = opt(None, "Folder of the pictures. Nothing in it is changed.", positional=True)
    dst_img_folder: Path | None = opt(
        None,
        "Folder to write to. NAME.EXT becomes NAME+WIDTHxHEIGHT.jpg or .png, for each resolution.",
        positional=True,
    )
    max_resolution: str = opt(
        "512x512,384x384,256x256,128x128",
        "Resolutions as WIDTHxHEIGHT, separated by commas. Each is an area: a picture keeps its shape and shrinks "
        "until it has at most so many pixels. Each starts from the original.",
    )
    upscale: bool = opt(False, "Enlarge pictures that have fewer pixels; they keep their size otherwise.")
    divisible_by: int = opt(1, "Cut the edges off, evenly, until both sides can be divided by this.", minimum=1)
    interpolation: str | None = opt(
        None,
        "How pixels are computed. Not set means area averaging where a picture shrinks, else Lanczos.",
        choices=("area", "cubic", "lanczos4", "nearest", "linear", "box"),
    )
    save_as_png: bool = opt(
        False, "Write PNG. Otherwise JPEG of quality 100, and PNG for what can be transparent, which JPEG cannot."
    )
    copy_associated_files: bool = opt(
        False, "Copy captions and other files of a picture's name along, under the new name; caches are left out."
    )
    recursive: bool = opt(False, "Take the pictures of sub-folders too, and write them to sub-folders.")
    overwrite: bool = opt(False, "Write files anew that are in the folder to write to already.")
    max_data_loader_n_workers: int | None = opt(
        None, "Threads. Not set means one for each processor, at most 8; 0 does one picture after the other.", minimum=0
    )

    @property
    def resolutions(self) -> tuple[Size, ...]:
        """Those of --max_resolution."""
        found = (_SIZE.fullmatch(part.strip()) for part in self.max_resolution.split(","))
        return tuple(Size(int(match[1]), int(match[2])) for match in found if match)

    def check(self) -> Iterator[str]:
        if not all(_SIZE.fullmatch(part.strip()) for part in self.max_resolution.split(",")):
            example = _meant_size(self.max_resolution)
            advice = f"For one size write {example}" if example else "An example is 512x512,768x512"
            yield (
                f"--max_resolution needs sizes as WIDTHxHEIGHT, separated by commas, got '{self.max_resolution}'. "
                f"{advice}."
            )
        elif len(set(self.resolutions)) < len(self.resolutions):
            yield f"--max_resolution {self.max_resolution} has a resolution twice. Name each once."
        small = [size for size in self.resolutions if size.width * size.height < self.divisible_by**2]
        if small:
            yield (
                f"--divisible_by {self.divisible_by} fits no picture at {small[0]}, as both sides would need "
                f"{self.divisible_by} pixels. Give a smaller one, or a larger --max_resolution."
            )


@dataclass(frozen=True, kw_only=True)
class ResizingOptions(CommonOptions):
    """Options of tools/resize_images_to_resolution.py."""

    resize: ResizeOptions = field(default_factory=ResizeOptions)

    leading: ClassVar[tuple[str, ...]] = ("resize",)


RESIZING_SCRIPT: ScriptText = {
    "prog": "tools/resize_images_to_resolution.py",
    "description": "Write smaller copies of pictures, by area, in one or several resolutions.",
    "example": "python tools/resize_images_to_resolution.py photos smaller --max_resolution 1024x1024 "
    "--copy_associated_files",
    "ignored": {},
}
