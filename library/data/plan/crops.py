"""Where the training picture is cut out of the resized one, when not at the centre.

Draws come from a generator that is passed in; no picture is needed.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.records import CropPlan, ImageRecord, Size

if TYPE_CHECKING:
    from library.data.config.specs import DatasetSpec

_FACE_PARTS = 4
_FACE_JITTER = 20  # a face off the centre by up to this part of its size


class Face(NamedTuple):
    """The box around a face: centre and size in pixels of the picture."""

    x: int
    y: int
    width: int
    height: int


def face_in_name(path: Path, picture: Size) -> Face | None:
    """The face that a file name tells: its last four parts, as in "anna_640_310_180_220.jpg"; None where there is none.

    They are centre x, centre y, width and height. A name of only these four parts does not count, nor does a face
    whose centre is not in the picture: numbers like those of "photo_2024_05_17_12.jpg" are something else.

    Args:
        path: The file.
        picture: Its size.
    """
    name, *parts = path.stem.rsplit("_", _FACE_PARTS)
    if not name or len(parts) < _FACE_PARTS or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    face = Face(*map(int, parts))
    is_inside = face.x < picture.width and face.y < picture.height
    return face if is_inside and face.width > 0 and face.height > 0 else None


def drawn_crop(record: ImageRecord, plan: CropPlan, spec: DatasetSpec, draw: random.Random) -> CropPlan:
    """The crop of a picture this time: around its face or at any place, as its subset wants; else the planned one.

    Args:
        record: The picture.
        plan: Its crop at the centre.
        spec: Of its dataset. Faces are cut out only without buckets.
        draw: Generator of this sample in this epoch.
    """
    subset = spec.subsets[record.subset]
    if subset.face_crop_aug_range is not None and not spec.enable_bucket:
        face = face_in_name(record.path, record.size)
        if face is not None:
            return face_crop(plan, record.size, face, subset.face_crop_aug_range, draw=draw, is_wide=subset.random_crop)
    return random_crop(plan, draw) if subset.random_crop else plan


def random_crop(plan: CropPlan, draw: random.Random) -> CropPlan:
    """The same plan cut at a place drawn uniformly from all that fit."""
    left = draw.randint(0, plan.resized.width - plan.bucket.width)
    top = draw.randint(0, plan.resized.height - plan.bucket.height)
    return replace(plan, left=left, top=top)


def face_crop(
    plan: CropPlan,
    picture: Size,
    face: Face,
    sides: tuple[float, float],
    *,
    draw: random.Random,
    is_wide: bool = False,
) -> CropPlan:
    """A crop around a face, at a size and place that are drawn; never outside the picture.

    Args:
        plan: Says what size is cut out.
        picture: Size of the stored picture.
        face: In it.
        sides: The shorter side of the crop shall be this many times the longer side of the face: from, to. The
            picture is not enlarged for it, and always covers the crop.
        draw: Generator of this sample in this epoch.
        is_wide: The face may lie anywhere, most often near the centre; else it is off the centre by a 20th at most.
    """
    bucket = plan.bucket
    longer = max(face.width, face.height)
    covering = max(bucket.width / picture.width, bucket.height / picture.height)
    most = max(1.0, covering)
    smallest, largest = (min(most, max(covering, min(bucket) / (longer * side))) for side in reversed(sides))
    scale = draw.uniform(smallest, largest)
    resized = Size(
        max(bucket.width, int(picture.width * scale + 0.5)), max(bucket.height, int(picture.height * scale + 0.5))
    )
    jitter = longer * scale / _FACE_JITTER
    left = _start(face.x * scale, resized.width, bucket.width, jitter=None if is_wide else jitter, draw=draw)
    top = _start(face.y * scale, resized.height, bucket.height, jitter=None if is_wide else jitter, draw=draw)
    return CropPlan(resized, left, top, bucket)


def _start(centre: float, length: int, cut: int, *, jitter: float | None, draw: random.Random) -> int:
    """Where to start cutting `cut` out of `length` so that `centre` is near the middle.

    Args:
        jitter: How far off it may be, in pixels; None for as far as the farther end of the picture, rarely.
    """
    if jitter is None:
        reach = max(length - centre, centre)
        shift = draw.uniform(0, reach) + draw.uniform(0, reach) - reach
    else:
        shift = draw.uniform(-jitter, jitter)
    return min(max(0, round(centre - cut / 2 + shift)), length - cut)
