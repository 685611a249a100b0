"""Random crops and crops around faces."""

import random
from pathlib import Path

import pytest

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.plan.crops import Face, drawn_crop, face_crop, face_in_name, random_crop
from library.records import CropPlan, ImageRecord, Size


def test_every_place_can_be_drawn_and_nothing_else_changes():
    plan = CropPlan(Size(66, 65), 1, 0, Size(64, 64))
    crops = [random_crop(plan, random.Random(seed)) for seed in range(100)]
    assert {(crop.left, crop.top) for crop in crops} == {(left, top) for left in range(3) for top in range(2)}
    assert {(crop.resized, crop.bucket) for crop in crops} == {(plan.resized, plan.bucket)}


def test_no_choice_where_the_picture_fits_exactly():
    plan = CropPlan(Size(64, 64), 0, 0, Size(64, 64))
    assert random_crop(plan, random.Random(1)) == plan


@pytest.mark.parametrize(
    ("name", "face"),
    [
        ("anna_640_310_180_220.jpg", Face(640, 310, 180, 220)),
        ("my_summer_1_2_3_4.png", Face(1, 2, 3, 4)),
        ("640_310_180_220.jpg", None),
        ("_640_310_180_220.jpg", None),
        ("anna_640_310_180.jpg", None),
        ("anna_640_310_180_b.jpg", None),
        ("anna_640_310_-180_220.jpg", None),
        ("anna_640_310_0_220.jpg", None),
        ("anna_٣_310_180_220.jpg", None),
        ("photo_2024_05_17_12.png", None),
        ("anna_799_599_17_12.png", Face(799, 599, 17, 12)),
        ("anna_800_599_17_12.png", None),
        ("anna_799_600_17_12.png", None),
    ],
)
def test_faces_in_names(name, face):
    assert face_in_name(Path("a_1_2_3_4") / name, Size(800, 600)) == face


PLAN = CropPlan(resized=Size(100, 80), left=18, top=8, bucket=Size(64, 64))
PICTURE = Size(1000, 800)


def face_crops(face, sides, *, is_wide=False, plan=PLAN, picture=PICTURE):
    return [face_crop(plan, picture, face, sides, draw=random.Random(seed), is_wide=is_wide) for seed in range(200)]


def test_the_crop_is_as_many_faces_wide_as_the_range_says():
    face = Face(500, 400, 40, 80)
    shares = [64 / (80 * crop.resized.width / PICTURE.width) for crop in face_crops(face, (2.0, 4.0))]
    assert 2 <= min(shares) < 2.1 and 3.5 < max(shares) < 4.05
    exact = {crop.resized for crop in face_crops(face, (2.0, 2.0))}
    assert exact == {Size(400, 320)}


def test_the_face_is_at_the_centre_but_for_a_20th_of_its_size():
    crops = face_crops(Face(500, 400, 80, 80), (2.0, 2.0))
    offsets = [(200 - crop.left - 32, 160 - crop.top - 32) for crop in crops]
    assert {x for x, _ in offsets} == {y for _, y in offsets} == {-2, -1, 0, 1, 2}


def test_with_random_crop_the_face_is_anywhere_most_often_near_the_centre():
    crops = face_crops(Face(500, 400, 80, 80), (2.0, 2.0), is_wide=True)
    lefts = [crop.left for crop in crops]
    assert min(lefts) < 40 and max(lefts) > 300
    assert sum(abs(left - 168) <= 84 for left in lefts) > 110  # a half of the way on either side


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("centre", [(0, 0), (999, 799), (0, 799), (5000, 5000)])
def test_never_outside_the_picture(centre, is_wide):
    for crop in face_crops(Face(*centre, 300, 200), (0.2, 5.0), is_wide=is_wide):
        assert 0 <= crop.left <= crop.resized.width - 64
        assert 0 <= crop.top <= crop.resized.height - 64


def test_a_picture_covers_its_crop_and_is_not_enlarged_for_a_small_face():
    assert {crop.resized for crop in face_crops(Face(500, 400, 4, 4), (1.0, 2.0))} == {PICTURE}
    assert {crop.resized for crop in face_crops(Face(500, 400, 900, 700), (1.0, 2.0))} == {Size(80, 64)}
    small = face_crops(Face(20, 20, 10, 10), (1.0, 2.0), picture=Size(40, 32))
    assert {crop.resized for crop in small} == {Size(80, 64)}


def crop_of(name, *, enable_bucket=False, **settings):
    spec = DatasetSpec(
        resolution=Size(64, 64), enable_bucket=enable_bucket, subsets=(SubsetSpec(image_dir=Path("p"), **settings),)
    )
    record = ImageRecord(Path("p") / name, name, "", PICTURE, 1, 0, 0)
    return drawn_crop(record, PLAN, spec, random.Random(3))


def test_which_crop_is_drawn():
    face, plain = "a_500_400_80_80.png", "a.png"
    around = {"face_crop_aug_range": (2.0, 2.0)}
    assert crop_of(face, **around).resized == Size(400, 320)
    assert crop_of(plain, **around) == PLAN
    assert crop_of(face) == PLAN
    assert crop_of(face, enable_bucket=True, **around) == PLAN
    assert crop_of(plain, random_crop=True, **around) == crop_of(plain, random_crop=True) != PLAN
    assert crop_of(face, random_crop=True, **around).resized == Size(400, 320)
