"""Buckets and centred crops beyond the golden values."""

from dataclasses import replace
from pathlib import Path

import pytest

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.plan.buckets import cover, crop_loss, fit_buckets, make_buckets, plan_crop, select_bucket
from library.records import CropPlan, ImageRecord, Size

SUBSET = SubsetSpec(image_dir=Path("pictures"))
BUCKETED = DatasetSpec(resolution=Size(512, 512), enable_bucket=True, subsets=(SUBSET,))
NO_UPSCALE = replace(BUCKETED, bucket_no_upscale=True)


def record(width, height, name="a.png", dataset=0):
    return ImageRecord(Path("pictures") / name, f"pictures/{name}", "", Size(width, height), 1, dataset, 0)


def fit(*records, **filters):
    """Of pictures in a bucketed dataset whose subset has filters."""
    return fit_buckets(records, [replace(BUCKETED, subsets=(replace(SUBSET, **filters),))])


def names(found):
    return [record.path.name for record in found]


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
    found = fit_buckets(records, [NO_UPSCALE])
    assert names(found.records) == ["a.png"]
    advice = (
        "remove the picture, leave such ones out with min_image_size or max_aspect_ratio, or turn bucket_no_upscale off"
    )
    assert [str(fault) for fault in found.findings.faults] == [
        f"{Path('pictures/thin.png')} at 40x400 pixels a side becomes shorter than bucket_reso_steps 64; {advice}",
        f"{Path('pictures/flat.png')} at 30000x40 pixels a side becomes shorter than bucket_reso_steps 64; {advice}",
    ]


def test_a_fault_in_two_datasets_is_listed_once():
    records = [record(40, 400), record(40, 400, dataset=1)]
    assert len(fit_buckets(records, [NO_UPSCALE, NO_UPSCALE]).findings.faults) == 1


def test_strong_enlargement_and_crop_are_said():
    found = fit(record(16, 16, "tiny.png"), record(4000, 20, "flat.png"), record(512, 512))
    assert [crop.bucket for crop in found.crops] == [Size(512, 512), Size(1024, 256), Size(512, 512)]
    assert found.findings.notes == (
        "pictures enlarged more than 1.5 times: 2 (tiny.png, flat.png)",
        "pictures that lose more than half of their area to the crop: 1 (flat.png)",
    )


def test_crop_loss_is_the_share_cut_away():
    assert crop_loss(CropPlan(Size(200, 100), 50, 0, Size(100, 100))) == 0.5
    assert crop_loss(CropPlan(Size(64, 64), 0, 0, Size(64, 64))) == 0


@pytest.mark.parametrize(
    ("filters", "left", "reason"),
    [
        ({"min_image_size": 256}, ["small.png"], "is smaller than min_image_size 256"),
        ({"max_aspect_ratio": 4.0}, ["flat.png"], "is longer or higher than max_aspect_ratio 4 allows"),
        (
            {"max_crop_fraction": 0.19},
            ["flat.png"],
            "would lose more of its area to the crop than max_crop_fraction 0.19 allows",
        ),
    ],
)
def test_filters_leave_pictures_out(filters, left, reason):
    given = [
        record(255, 256, "small.png"),
        record(256, 256),
        record(4000, 800, "flat.png"),
        record(1024, 256, "wide.png"),
    ]
    found = fit(*given, **filters)
    assert names(found.findings.left_out) == left
    assert {fault.problem for fault in found.findings.left_out} == {reason}
    assert names(found.records) == [r.path.name for r in given if r.path.name not in left]
    assert [crop.bucket for crop in found.crops] == [plan_crop(r.size, BUCKETED).bucket for r in found.records]
    assert found.findings.faults == ()


def test_filters_come_before_faults():
    spec = replace(NO_UPSCALE, subsets=(replace(SUBSET, min_image_size=64),))
    found = fit_buckets([record(40, 400), record(512, 512, "b.png")], [spec])
    assert names(found.records) == ["b.png"]
    assert found.findings.faults == ()
    assert len(found.findings.left_out) == 1


def test_filters_that_leave_nothing_are_a_problem():
    found = fit(record(100, 100, "x.png"), record(90, 90, "y.png"), min_image_size=256)
    assert found.findings.problems == (
        "filters leave nothing of 2 pictures (x.png, y.png); loosen min_image_size, max_aspect_ratio or "
        "max_crop_fraction",
    )
    assert fit().findings.problems == ()


def test_each_record_uses_its_own_dataset():
    specs = [BUCKETED, DatasetSpec(resolution=Size(64, 32), subsets=(SUBSET,))]
    found = fit_buckets([record(512, 512), record(512, 512, dataset=1)], specs)
    assert [crop.bucket for crop in found.crops] == [Size(512, 512), Size(64, 32)]
