"""What SDXL is told of crops and sizes equals reference values. Source: SOURCES.d/data_planning.md (buckets.json)."""

import json
from pathlib import Path

import pytest
import torch

from library.families.sdxl.conditioning import compat_sizes, size_embedding, true_sizes
from library.families.unet.fitted_box import fitted_box
from library.records import CropPlan, Size, View

BUCKETS = json.loads((Path(__file__).parent / "data" / "buckets.json").read_text(encoding="utf-8"))
ROWS = [row for case in BUCKETS["configs"] for row in case["images"] if len(row) == len(BUCKETS["image_columns"])]


def views(row, is_flipped):
    image, bucket, resized, _, _, trim, *_ = row
    return View(Size(*image), CropPlan(Size(*resized), *trim, Size(*bucket)), is_flipped)


def test_compat_crops_are_those_of_sd_scripts_for_every_picture():
    assert len(ROWS) > 1000
    for is_flipped, column in ((False, -2), (True, -1)):
        sizes = compat_sizes([views(row, is_flipped) for row in ROWS])
        expected = [[*row[0][::-1], *row[column], *row[1][::-1]] for row in ROWS]
        assert torch.equal(sizes, torch.tensor(expected, dtype=torch.float32))
    for row in ROWS:
        assert fitted_box(Size(*row[0]), Size(*row[1])) == pytest.approx(row[4], abs=1e-9)


def test_true_crops_are_where_the_picture_is_trimmed():
    sizes = true_sizes([views(row, False) for row in ROWS])
    expected = [[*row[0][::-1], *row[5][::-1], *row[1][::-1]] for row in ROWS]
    assert torch.equal(sizes, torch.tensor(expected, dtype=torch.float32))
    assert (sizes[:, 2:4] != compat_sizes([views(row, False) for row in ROWS])[:, 2:4]).any()


@pytest.mark.parametrize("case", BUCKETS["sdxl_size_embedding"], ids=lambda case: str(case["original_hw"]))
def test_embedded_sizes_equal_the_reference(case):
    sizes = torch.tensor([[*case["original_hw"], *case["crop_top_left"], *case["target_hw"]]], dtype=torch.float32)
    embedded = size_embedding(sizes)
    assert embedded.shape == (1, case["length"])
    torch.testing.assert_close(embedded[0, case["indices"]], torch.tensor(case["values"]), atol=1e-5, rtol=0)
