"""Buckets and centred crops beyond the golden values."""

from pathlib import Path

import pytest

from library.data.buckets import cover, make_buckets, plan_crop, plan_crops, select_bucket
from library.data.specs import DatasetSpec
from library.errors import DatasetError
from library.records import CropPlan, ImageRecord, Size

BUCKETED = DatasetSpec(resolution=Size(512, 512), enable_bucket=True)
NO_UPSCALE = DatasetSpec(resolution=Size(512, 512), enable_bucket=True, bucket_no_upscale=True)


def record(width, height, name="a.png"):
    return ImageRecord(Path("pictures") / name, f"pictures/{name}", "", Size(width, height), 1, 0, 0)


def test_one_bucket_without_bucketing():
    spec = DatasetSpec(resolution=Size(640, 448))
    assert make_buckets(spec) == (Size(640, 448),)
    assert plan_crop(Size(1920, 1080), spec) == CropPlan(Size(796, 448), 78, 0, Size(640, 448))


def test_first_of_equally_near_buckets_wins():
    buckets = [Size(64, 128), Size(128, 64), Size(128, 128)]
    assert select_bucket(Size(200, 160), [Size(150, 100), Size(100, 100)]) == Size(150, 100)
    assert select_bucket(Size(128, 64), buckets) == Size(128, 64)


def test_cover_fills_the_bucket_with_the_picture_shape():
    assert cover(Size(1920, 1080), Size(640, 384)) == Size(683, 384)
    assert cover(Size(1080, 1920), Size(384, 640)) == Size(384, 683)


def test_small_pictures_stay_small_without_upscaling():
    assert plan_crop(Size(300, 200), NO_UPSCALE) == CropPlan(Size(300, 200), 22, 4, Size(256, 192))


def test_pictures_that_fit_no_bucket_are_all_listed():
    records = [record(40, 400, "thin.png"), record(512, 512), record(30000, 40, "flat.png")]
    with pytest.raises(DatasetError) as caught:
        plan_crops(records, [NO_UPSCALE], "data.toml")
    message = str(caught.value)
    assert message.startswith("data.toml: 2 pictures cannot be used:")
    assert "thin.png at 40x400 pixels" in message
    assert "flat.png at 30000x40 pixels" in message
    with pytest.raises(DatasetError, match=r"^data.toml: .*thin.png at 40x400 .*turn bucket_no_upscale off.$"):
        plan_crops(records[:1], [NO_UPSCALE], "data.toml")


def test_strong_enlargement_and_crop_are_said(caplog):
    crops = plan_crops([record(16, 16, "tiny.png"), record(4000, 20, "flat.png"), record(512, 512)], [BUCKETED], "d")
    assert [crop.bucket for crop in crops] == [Size(512, 512), Size(1024, 256), Size(512, 512)]
    assert "pictures enlarged more than 1.5 times: 2 (tiny.png, flat.png)" in caplog.text
    assert "pictures that lose more than half of their area to the crop: 1 (flat.png)" in caplog.text


def test_each_record_uses_its_own_dataset():
    records = [record(512, 512), ImageRecord(Path("b"), "b", "", Size(512, 512), 1, 1, 0)]
    crops = plan_crops(records, [BUCKETED, DatasetSpec(resolution=Size(64, 32))], "d")
    assert [crop.bucket for crop in crops] == [Size(512, 512), Size(64, 32)]
