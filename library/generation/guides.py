"""Guiding pictures: which belong to a prompt, and what is made of them before something looks at them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import OptionError
from library.generation.options.extras import CONTROL_PREPS
from library.generation.sources import listed_pictures, opened_picture
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image

OPTION = "--guide_image_path"
_PREP = re.compile(r"(none|invert)|(canny)(?:_(\d{1,3})_(\d{1,3}))?|(blur)(?:_(\d+(?:\.\d+)?))?")
_CANNY, _BLUR = (100, 200), 4.0  # thresholds, and a radius in pixels


@dataclass(frozen=True)
class GuidePictures:
    """The files of each path of the option: one picture, or those of a folder in the order of their names."""

    files: tuple[tuple[Path, ...], ...] = ()

    @classmethod
    def of(cls, paths: Sequence[Path] | None) -> GuidePictures:
        """From the option.

        Raises:
            OptionError: A path does not exist, or a folder has no pictures.
        """
        return cls(tuple(listed_pictures(path, OPTION) for path in paths or ()))

    def at(self, prompt: int) -> tuple[Path, ...]:
        """One picture of each path for a prompt, by its number from 0."""
        return tuple(files[prompt % len(files)] for files in self.files)


def check_preps(preps: Sequence[str]) -> None:
    """Refuse what nothing can be made by.

    Raises:
        OptionError: One is unknown.
    """
    for prep in preps:
        if _PREP.fullmatch(prep) is None:
            raise OptionError(f"--control_net_preps: {prep} is unknown. Known are {', '.join(CONTROL_PREPS)}.")


def load_guide(path: Path, size: Size, prep: str = "none") -> Image:
    """A guiding picture at a size, in colours, made ready.

    Args:
        path: Of the picture.
        size: It is resized to.
        prep: "none"; "canny" or "canny_100_200" for edges, white on black, between two thresholds; "blur" or "blur_4"
            for a blur of a radius in pixels; "invert" for the negative.

    Raises:
        DatasetError: It cannot be read.
    """
    from PIL import Image as pillow
    from PIL import ImageFilter, ImageOps

    from library.data.pixels.colours import to_rgb

    found = _PREP.fullmatch(prep)
    assert found is not None  # checked before
    with opened_picture(path, OPTION) as picture:
        resized = to_rgb(picture).resize(size, pillow.Resampling.LANCZOS)
    if found[1] == "invert":
        return ImageOps.invert(resized)
    if found[2]:
        return _edges(resized, int(found[3] or _CANNY[0]), int(found[4] or _CANNY[1]))
    return resized.filter(ImageFilter.GaussianBlur(float(found[6] or _BLUR))) if found[5] else resized


def _edges(picture: Image, low: int, high: int) -> Image:
    """Canny's edges in the grey values."""
    import numpy
    from PIL import Image as pillow

    from library.data.pixels.opencv import opencv

    edges = opencv().Canny(numpy.asarray(picture.convert("L")), low, high)
    return pillow.fromarray(edges).convert("RGB")
