"""Random crops."""

import random

from library.data.crops import random_crop
from library.records import CropPlan, Size


def test_every_place_can_be_drawn_and_nothing_else_changes():
    plan = CropPlan(Size(66, 65), 1, 0, Size(64, 64))
    crops = [random_crop(plan, random.Random(seed)) for seed in range(100)]
    assert {(crop.left, crop.top) for crop in crops} == {(left, top) for left in range(3) for top in range(2)}
    assert {(crop.resized, crop.bucket) for crop in crops} == {(plan.resized, plan.bucket)}


def test_no_choice_where_the_picture_fits_exactly():
    plan = CropPlan(Size(64, 64), 0, 0, Size(64, 64))
    assert random_crop(plan, random.Random(1)) == plan
