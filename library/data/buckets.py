"""Which size a picture is trained at.

With bucketing off every picture gets the dataset's resolution. With bucketing on it gets the size of nearest aspect
ratio among sizes of about the same area, or, with `bucket_no_upscale`, its own size rounded down to the step. Either
way it is resized to cover that size and the rest is cut away. Pure functions; nothing is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from library.data.problems import dataset_error, first_names
from library.data.specs import DatasetSpec
from library.errors import DatasetError
from library.log import get_logger
from library.records import CropPlan, ImageRecord, Size

logger = get_logger(__name__)

WARN_ENLARGED = 1.5  # times the width or height
WARN_CUT = 0.5  # share of the picture's area


def make_buckets(spec: DatasetSpec) -> tuple[Size, ...]:
    """All sizes a picture of the dataset can get, sorted. Empty with `bucket_no_upscale`: sizes come from pictures."""
    if not spec.enable_bucket:
        return (spec.resolution,)
    if spec.bucket_no_upscale:
        return ()
    area = spec.resolution.width * spec.resolution.height
    return _sizes_of_area(area, spec.min_bucket_reso, spec.max_bucket_reso, spec.bucket_reso_steps)


def select_bucket(image: Size, buckets: Sequence[Size]) -> Size:
    """The bucket of the picture's own size, else of the nearest aspect ratio; the first of equals wins."""
    if image in buckets:
        return image
    ratio = image.width / image.height
    return min(buckets, key=lambda bucket: abs(bucket.width / bucket.height - ratio))


def plan_crop(size: Size, spec: DatasetSpec) -> CropPlan:
    """How a picture of `size` pixels becomes a training picture, cut out at the centre.

    Raises:
        DatasetError: With `bucket_no_upscale`, a side would be shorter than the step. The message has no file name.
    """
    if spec.enable_bucket and spec.bucket_no_upscale:
        resized, bucket = _without_upscaling(size, spec)
    else:
        bucket = select_bucket(size, make_buckets(spec))
        resized = cover(size, bucket)
    left, top = (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2
    return CropPlan(resized=resized, left=left, top=top, bucket=bucket)


def plan_crops(records: Iterable[ImageRecord], specs: Sequence[DatasetSpec], source: str) -> tuple[CropPlan, ...]:
    """`plan_crop` for every record; warns about pictures that are enlarged or cut a lot.

    Args:
        records: As scanned.
        specs: The datasets that the records' `dataset` counts.
        source: The dataset file, for messages.

    Raises:
        DatasetError: Lists all pictures that fit no bucket.
    """
    crops, problems, enlarged, cut = [], [], [], []
    for record in records:
        try:
            crop = plan_crop(record.size, specs[record.dataset])
        except DatasetError as error:
            problems.append(f"{record.path} {error}")
            continue
        crops.append(crop)
        if crop.resized.height > WARN_ENLARGED * record.size.height:
            enlarged.append(record.path.name)
        if crop.bucket.width * crop.bucket.height < WARN_CUT * crop.resized.width * crop.resized.height:
            cut.append(record.path.name)
    if problems:
        raise dataset_error(source, problems, "pictures cannot be used")
    if enlarged:
        logger.warning(
            "pictures enlarged more than %s times: %d (%s)", WARN_ENLARGED, len(enlarged), first_names(enlarged)
        )
    if cut:
        logger.warning(
            "pictures that lose more than half of their area to the crop: %d (%s)", len(cut), first_names(cut)
        )
    return tuple(crops)


def mean_aspect_error(records: Sequence[ImageRecord], crops: Sequence[CropPlan]) -> float:
    """Mean over pictures of the distance between the width/height of bucket and picture."""
    pairs = [(crop.bucket, record.size) for record, crop in zip(records, crops, strict=True)]
    return sum(abs(b.width / b.height - s.width / s.height) for b, s in pairs) / len(pairs)


def cover(image: Size, bucket: Size) -> Size:
    """The size of the picture's shape that just covers the bucket."""
    if image.width / image.height > bucket.width / bucket.height:
        return Size(int(image.width * (bucket.height / image.height) + 0.5), bucket.height)
    return Size(bucket.width, int(image.height * (bucket.width / image.width) + 0.5))


@lru_cache(maxsize=64)
def _sizes_of_area(area: int, shortest: int, longest: int, step: int) -> tuple[Size, ...]:
    """The largest square, and for every width the largest height, that the area allows; in both orientations."""
    square = math.isqrt(area) // step * step
    sizes = {Size(square, square)}
    for width in range(shortest, longest + 1, step):
        height = min(longest, area // width // step * step)
        if height >= shortest:
            sizes |= {Size(width, height), Size(height, width)}
    return tuple(sorted(sizes))


def _without_upscaling(image: Size, spec: DatasetSpec) -> tuple[Size, Size]:
    """Resized size and bucket of a picture that must not grow: shrunk to the area if it is larger."""
    step = spec.bucket_reso_steps
    resized = image
    if image.width * image.height > spec.resolution.width * spec.resolution.height:
        resized = _shrink(image, spec.resolution, step)
    bucket = Size(resized.width // step * step, resized.height // step * step)
    if min(bucket) < 1:
        raise _too_small(image, step)
    return resized, bucket


def _shrink(image: Size, resolution: Size, step: int) -> Size:
    """The picture at about the area of `resolution`, one side a multiple of `step`: whichever keeps its shape better.

    Raises:
        DatasetError: The picture is so flat that the shorter side falls below the step.
    """
    area = resolution.width * resolution.height
    ratio = image.width / image.height
    ideal_width = math.sqrt(area * ratio)
    width = _round_down(ideal_width, step)
    height = _round_down(area / ideal_width, step)
    height_for_width = _round_down(width / ratio, step)
    width_for_height = _round_down(height * ratio, step)
    if min(width, height, height_for_width, width_for_height) < 1:
        raise _too_small(image, step)
    if abs(width / height_for_width - ratio) < abs(width_for_height / height - ratio):
        return Size(width, int(width / ratio + 0.5))
    return Size(int(height * ratio + 0.5), height)


def _too_small(image: Size, step: int) -> DatasetError:
    return DatasetError(
        f"at {image} pixels a side becomes shorter than bucket_reso_steps {step}; remove the picture, "
        "or turn bucket_no_upscale off"
    )


def _round_down(length: float, step: int) -> int:
    """To the nearest pixel, then down to a multiple of `step`."""
    return int(length + 0.5) // step * step
