"""Which size a picture is trained at.

With bucketing off every picture gets the dataset's resolution. With bucketing on it gets the size of nearest aspect
ratio among sizes of about the same area, or, with `bucket_no_upscale`, its own size rounded down to the step. Either
way it is resized to cover that size and the rest is cut away. Pure functions; nothing is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.findings import Fault, Findings
from library.data.problems import counted, first_names
from library.errors import DatasetError
from library.records import CropPlan, ImageRecord, Size

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


@dataclass(frozen=True)
class Fit:
    """Pictures with the crop of each, and why the others are not among them."""

    records: tuple[ImageRecord, ...]
    crops: tuple[CropPlan, ...]
    findings: Findings


def fit_buckets(records: Sequence[ImageRecord], specs: Sequence[DatasetSpec]) -> Fit:
    """`plan_crop` for every picture that passes the filters of its subset.

    Pictures that fit no bucket are faults; those that a filter keeps out are left out. Notes tell how many are
    enlarged or cut a lot.

    Args:
        records: As scanned.
        specs: The datasets that the records' `dataset` counts.
    """
    kept, faults, left_out = [], [], []
    plan = lru_cache(maxsize=None)(lambda size, dataset: plan_crop(size, specs[dataset]))  # many have the same size
    for record in records:
        subset = specs[record.dataset].subsets[record.subset]
        try:
            reason = _filter_of_size(record.size, subset) or _filter_of_crop(plan(record.size, record.dataset), subset)
        except DatasetError as error:
            faults.append(Fault(record.path, str(error)))
            continue
        if reason is None:
            kept.append(record)
        else:
            left_out.append(Fault(record.path, reason, kind="filter"))
    crops = [plan(record.size, record.dataset) for record in kept]
    names = first_names([fault.path.name for fault in left_out])
    problem = f"filters leave nothing of {counted(len(left_out), 'picture')} ({names})"
    advice = "loosen min_image_size, max_aspect_ratio or max_crop_fraction"
    is_all = left_out and not kept and not faults
    found = Findings(
        problems=(f"{problem}; {advice}",) if is_all else (),
        faults=tuple(dict.fromkeys(faults)),
        left_out=tuple(dict.fromkeys(left_out)),
        notes=_notes(kept, crops),
    )
    return Fit(tuple(kept), tuple(crops), found)


def crop_loss(crop: CropPlan) -> float:
    """Share of the picture's area that is cut away, 0-1."""
    return 1 - crop.bucket.width * crop.bucket.height / (crop.resized.width * crop.resized.height)


def mean_aspect_error(records: Sequence[ImageRecord], crops: Sequence[CropPlan]) -> float:
    """Mean over pictures of the distance between the width/height of bucket and picture."""
    pairs = [(crop.bucket, record.size) for record, crop in zip(records, crops, strict=True)]
    return sum(abs(b.width / b.height - s.width / s.height) for b, s in pairs) / len(pairs)


def cover(image: Size, bucket: Size) -> Size:
    """The size of the picture's shape that just covers the bucket."""
    if image.width / image.height > bucket.width / bucket.height:
        return Size(int(image.width * (bucket.height / image.height) + 0.5), bucket.height)
    return Size(bucket.width, int(image.height * (bucket.width / image.width) + 0.5))


def _filter_of_size(size: Size, subset: SubsetSpec) -> str | None:
    """Why the subset does not want a picture of this size. The same words for all pictures of a reason."""
    if min(size) < subset.min_image_size:
        return f"is smaller than min_image_size {subset.min_image_size}"
    if subset.max_aspect_ratio is not None and max(size) > subset.max_aspect_ratio * min(size):
        return f"is longer or higher than max_aspect_ratio {subset.max_aspect_ratio:g} allows"
    return None


def _filter_of_crop(crop: CropPlan, subset: SubsetSpec) -> str | None:
    if subset.max_crop_fraction is not None and crop_loss(crop) > subset.max_crop_fraction:
        return f"would lose more of its area to the crop than max_crop_fraction {subset.max_crop_fraction:g} allows"
    return None


def _notes(records: Sequence[ImageRecord], crops: Sequence[CropPlan]) -> tuple[str, ...]:
    """How many pictures are enlarged or cut a lot, each counted once."""
    pairs = list(zip(records, crops, strict=True))
    enlarged = {r.path: None for r, crop in pairs if crop.resized.height > WARN_ENLARGED * r.size.height}
    cut = {r.path: None for r, crop in pairs if crop_loss(crop) > WARN_CUT}
    counted = (
        (f"pictures enlarged more than {WARN_ENLARGED} times", enlarged),
        ("pictures that lose more than half of their area to the crop", cut),
    )
    return tuple(
        f"{what}: {len(paths)} ({first_names([path.name for path in paths])})" for what, paths in counted if paths
    )


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
        "leave such ones out with min_image_size or max_aspect_ratio, or turn bucket_no_upscale off"
    )


def _round_down(length: float, step: int) -> int:
    """To the nearest pixel, then down to a multiple of `step`."""
    return int(length + 0.5) // step * step
