"""What the user should know of pictures that can be used: how they are stored, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from library.data.config.specs import WHITE, SubsetSpec
from library.data.files.headers import PictureHeader
from library.data.findings import Fault, Findings
from library.data.plan.crops import face_in_name
from library.data.problems import first_names
from library.records import Size

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_PRINT_MODES = ("CMYK", "LAB", "YCCK")


class SeenPicture(NamedTuple):
    """A picture that will be used, and the subset it is of."""

    path: Path
    header: PictureHeader
    subset: SubsetSpec


def picture_findings(pictures: Sequence[SeenPicture]) -> Findings:
    """Notes and remarks on pictures; each file counts once.

    Args:
        pictures: Those that can be used.
    """
    noteworthy = [seen for seen in pictures if not _is_plain(seen)]
    distinct = tuple({(seen.path, seen.subset.alpha_mask): seen for seen in noteworthy}.values())
    remarks = (
        _counted(
            "pictures turned or mirrored as their EXIF orientation says", distinct, lambda p: p.header.orientation > 1
        ),
        _counted("pictures of print or LAB colours, turned into RGB by their profile", distinct, _is_for_print),
        _counted("grey pictures of 16 or 32 bits, scaled to 8", distinct, lambda p: p.header.mode in _DEEP_MODES),
        *_transparency(distinct),
    )
    notes = (
        _animations(distinct),
        _counted(
            "pictures without transparency in a subset with alpha_mask, learned everywhere",
            distinct,
            lambda p: p.subset.alpha_mask and not p.header.has_alpha,
        ),
        _counted(
            "pictures whose names end in no face inside of them (_x_y_width_height), which face_crop_aug_range leaves "
            "as they are",
            distinct,
            lambda p: p.subset.face_crop_aug_range is not None and face_in_name(p.path, p.header.size) is None,
        ),
    )
    return Findings(notes=tuple(filter(None, notes)), remarks=tuple(filter(None, remarks)))


def too_large(path: Path, header: PictureHeader, subset: SubsetSpec) -> Fault | None:
    """A fault where a picture has more pixels than `max_image_pixels` allows."""
    number = header.size.width * header.size.height
    if number <= subset.max_image_pixels:
        return None
    problem = f"has {number:,} pixels ({header.size}), more than max_image_pixels {subset.max_image_pixels:,}"
    return Fault(path, f"{problem}; make it smaller, or raise the limit", kind="too-large")


def has_shape_of(size: Size, other: Size) -> bool:
    """Whether one size is the other enlarged or shrunk, up to rounding to whole pixels."""
    slack = max(*size, *other)
    return abs(size.width * other.height - size.height * other.width) <= slack


def mask_fault(mask: Path, mask_size: Size, picture: Path, size: Size) -> Fault | None:
    """A fault where a mask has another shape than its picture."""
    if has_shape_of(mask_size, size):
        return None
    problem = f"is {mask_size} but its picture {picture.name} is {size}; give both one shape"
    return Fault(mask, problem, picture, "mask")


def _is_plain(seen: SeenPicture) -> bool:
    """Whether there is nothing to say about a picture."""
    header = seen.header
    is_usual = header.mode == "RGB" and header.orientation == 1 and header.frames == 1 and not header.has_alpha
    return is_usual and not seen.subset.alpha_mask and seen.subset.face_crop_aug_range is None


def _is_for_print(seen: SeenPicture) -> bool:
    return seen.header.mode in _PRINT_MODES


def _animations(pictures: Sequence[SeenPicture]) -> str | None:
    moving = {seen.path: seen.header.frames for seen in pictures if seen.header.frames > 1}
    names = [f"{path.name}: first frame of {frames} used" for path, frames in moving.items()]
    return f"animated pictures or pictures of several pages: {len(names)} ({first_names(names)})" if names else None


def _transparency(pictures: Sequence[SeenPicture]) -> list[str | None]:
    """A line for each background that shows through."""
    lines = []
    for colour in dict.fromkeys(seen.subset.background for seen in pictures):
        name = "white" if colour == WHITE else f"the background {colour}"
        title = f"pictures with transparency, laid on {name}"

        def shows(seen: SeenPicture, colour: tuple[int, int, int] = colour) -> bool:
            return seen.header.has_alpha and not seen.subset.alpha_mask and seen.subset.background == colour

        lines.append(_counted(title, pictures, shows))
    return lines


def _counted(title: str, pictures: Sequence[SeenPicture], is_meant: Callable[[SeenPicture], bool]) -> str | None:
    """The title with how many pictures it is about, and a few names; None where there are none."""
    names = list(dict.fromkeys(seen.path for seen in pictures if is_meant(seen)))
    return f"{title}: {len(names)} ({first_names([path.name for path in names])})" if names else None
