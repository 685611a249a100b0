"""The box of a picture in its bucket as sd-scripts writes it down and tells it to SDXL.

It is where the picture would lie if it were fitted into the bucket. What is trained on covers the bucket and is cut, so
this is not the place of the cut.
"""

from __future__ import annotations

from typing import NamedTuple

from library.records import Size


class Box(NamedTuple):
    """Sides of a box, in pixels from the left and the top of the bucket."""

    left: float
    top: float
    right: float
    bottom: float


def fitted_box(original: Size, bucket: Size) -> Box:
    """The box of a picture of this size in this bucket; left and top are whole numbers."""
    ratio = original.width / original.height
    if bucket.width / bucket.height > ratio:
        width, height = bucket.height * ratio, float(bucket.height)
    else:
        width, height = float(bucket.width), bucket.width / ratio
    left, top = (bucket.width - width) // 2, (bucket.height - height) // 2
    return Box(left, top, left + width, top + height)
