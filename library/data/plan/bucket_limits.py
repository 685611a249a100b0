"""Limits of bucket sides that keep buckets from doing what they are for, and which limits would not."""

from __future__ import annotations

import math
from dataclasses import replace

from library.data.config.specs import DatasetSpec
from library.data.plan.buckets import make_buckets, plan_crop
from library.records import Size

PHONE = Size(1080, 1920)  # 9:16, the slimmest picture that many people have
WARN_AREA = 0.8  # of the area that wider limits give


def limits_warning(spec: DatasetSpec) -> str | None:
    """What `min_bucket_reso` and `max_bucket_reso` spoil, with the values to set; None where all is well.

    Args:
        spec: A dataset; its limits include the sides of its resolution.
    """
    if not spec.enable_bucket or spec.bucket_no_upscale:
        return None
    wide = _with_wide_limits(spec)
    buckets = make_buckets(spec)
    if len(buckets) == 1:
        return (
            f"min_bucket_reso {spec.min_bucket_reso}, max_bucket_reso {spec.max_bucket_reso} and bucket_reso_steps "
            f"{spec.bucket_reso_steps} leave one bucket, {buckets[0]}, so enable_bucket changes nothing; "
            f"{_advice(spec, wide)}"
        )
    bucket, possible = plan_crop(PHONE, spec).bucket, plan_crop(PHONE, wide).bucket
    if _area(bucket) >= WARN_AREA * _area(possible):
        return None
    return (
        f"max_bucket_reso {spec.max_bucket_reso} keeps pictures that are not square below the area of resolution "
        f"{spec.resolution}: 9:16 gets {bucket}; set max_bucket_reso = {wide.max_bucket_reso}"
    )


def _with_wide_limits(spec: DatasetSpec) -> DatasetSpec:
    """The same with sides from half to twice those of the square of its area."""
    step = spec.bucket_reso_steps
    side = math.isqrt(_area(spec.resolution))
    low, high = max(step, side // 2 // step * step), -(-2 * side // step) * step
    return replace(
        spec, min_bucket_reso=min(spec.min_bucket_reso, low), max_bucket_reso=max(spec.max_bucket_reso, high)
    )


def _advice(spec: DatasetSpec, wide: DatasetSpec) -> str:
    if len(make_buckets(wide)) == 1:
        return "lower bucket_reso_steps"
    names = ("min_bucket_reso", "max_bucket_reso")
    changed = [f"{name} = {getattr(wide, name)}" for name in names if getattr(wide, name) != getattr(spec, name)]
    return f"set {' and '.join(changed)}"


def _area(size: Size) -> int:
    return size.width * size.height
