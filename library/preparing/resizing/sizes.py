"""Which size a picture gets: as large as an area allows, in its own shape, with sides that can be divided."""

from __future__ import annotations

from math import isqrt

from library.records import CropPlan, Size


def fitted_size(picture: Size, limit: Size, *, may_grow: bool = False) -> Size:
    """The largest size of a picture's shape that has at most as many pixels as `limit`.

    Args:
        picture: Its size.
        limit: Only its area counts.
        may_grow: A smaller picture is enlarged; otherwise it keeps its size.
    """
    area = limit.width * limit.height
    if picture.width * picture.height <= area and not may_grow:
        return picture
    # In whole numbers: no rounding makes the area larger than it may be, and 1024x1024 becomes 512x512 to the pixel.
    width = isqrt(area * picture.width // picture.height)
    height = isqrt(area * picture.height // picture.width)
    width = min(max(1, width), area)  # what is very long and thin gets one row
    return Size(width, min(max(1, height), area // width))


def central_cut(resized: Size, divisor: int) -> CropPlan:
    """What is cut out of the middle so that both sides can be divided; 0 pixels where a side is shorter than that."""
    cut = Size(resized.width // divisor * divisor, resized.height // divisor * divisor)
    return CropPlan(resized, (resized.width - cut.width) // 2, (resized.height - cut.height) // 2, cut)
