"""Pixels after resizing and trimming equal the reference; see data/SOURCES.d/pixels_and_names.md."""

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from library.data.config.specs import DatasetSpec
from library.data.pixels.images import load_image, prepare_image
from library.data.plan.buckets import plan_crop
from library.records import Size

DATA = Path(__file__).parent / "data" / "pixels"
SPEC = DatasetSpec(
    resolution=Size(96, 96), enable_bucket=True, min_bucket_reso=64, max_bucket_reso=128, bucket_reso_steps=32
)


ONE_LEVEL = 2 / 255 + 1e-6  # builds of OpenCV may round a mean differently


@pytest.mark.parametrize(
    ("name", "bucket", "tolerance"), [("exact", Size(64, 128), 1e-6), ("resized", Size(128, 64), ONE_LEVEL)]
)
def test_pixels(name, bucket, tolerance):
    expected = load(gzip.decompress((DATA / "expected.safetensors.gz").read_bytes()))[name]
    image = load_image(DATA / f"{name}.png")
    plan = plan_crop(Size(*image.size), SPEC)
    assert plan.bucket == bucket
    pixels = prepare_image(image, plan, None, False)
    torch.testing.assert_close(pixels, expected, atol=tolerance, rtol=0)
    assert (pixels - expected).abs().mean() < 1e-4
    assert torch.equal(prepare_image(image, plan, None, True), pixels.flip(-1))
