"""When limits of bucket sides spoil the buckets, and what is said of it."""

import pytest

from library.data.config.specs import DatasetSpec
from library.data.plan.bucket_limits import limits_warning
from library.data.plan.buckets import make_buckets
from library.records import Size


def dataset(side, low=256, high=1024, step=64, **keys):
    keys = {"enable_bucket": True} | keys
    return DatasetSpec(
        resolution=Size(side, side), min_bucket_reso=low, max_bucket_reso=high, bucket_reso_steps=step, **keys
    )


def test_default_limits_are_too_narrow_for_1024():
    assert limits_warning(dataset(1024)) == (
        "max_bucket_reso 1024 keeps pictures that are not square below the area of resolution 1024x1024: "
        "9:16 gets 576x1024; set max_bucket_reso = 2048"
    )


def test_default_limits_leave_one_bucket_at_256():
    warning = limits_warning(dataset(256))
    assert warning is not None
    assert "leave one bucket, 256x256, so enable_bucket changes nothing; set min_bucket_reso = 128" in warning
    assert "max_bucket_reso =" not in warning


@pytest.mark.parametrize(
    "spec, advice",
    [
        (dataset(512, 512, 512), "set min_bucket_reso = 256 and max_bucket_reso = 1024"),
        (dataset(1024, 256, 1024), "set max_bucket_reso = 2048"),
        (dataset(64, 64, 1024), "lower bucket_reso_steps"),
    ],
)
def test_the_advice_names_what_helps(spec, advice):
    warning = limits_warning(spec)
    assert warning is not None and warning.endswith(f"; {advice}")


@pytest.mark.parametrize(
    "spec",
    [
        dataset(1024, 512, 2048),
        dataset(512),
        dataset(768),
        dataset(1024, bucket_no_upscale=True),
        dataset(1024, enable_bucket=False),
        dataset(64, 32, 128, 16),
    ],
)
def test_limits_that_leave_room_are_not_mentioned(spec):
    assert limits_warning(spec) is None


def test_limits_set_as_advised_end_the_warning():
    assert limits_warning(dataset(256, low=128)) is None
    assert limits_warning(dataset(1024, high=2048)) is None
    assert len(make_buckets(dataset(256, low=128))) > 1
