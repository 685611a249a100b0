"""Pixels and masks of a training picture."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.pixels.images import load_image, prepare_image
from library.data.pixels.pictures import prepare_picture
from library.data.plan.buckets import plan_crop
from library.errors import DatasetError
from library.records import ImageRecord, Size

CELLS = 8


class Example:
    """A picture of 90 x 70 pixels with noise, trained at 64 x 64."""

    def __init__(self, folder, image=None, mask=None, **settings):
        rng = np.random.default_rng(0)
        self.image = image or Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8))
        path = folder / "a.png"
        self.image.save(path)
        mask_path = folder / "mask.png" if mask is not None else None
        if mask is not None:
            mask.save(mask_path)
        subset = SubsetSpec(image_dir=folder, conditioning_data_dir=mask_path and folder, **settings)
        self.spec = DatasetSpec(resolution=Size(64, 64), subsets=(subset,))
        size = Size(*self.image.size)
        self.record = ImageRecord(path, "a.png", "", size, 1, 0, 0, mask=mask_path)
        self.crop = plan_crop(size, self.spec)

    def prepare(self, **options):
        return prepare_picture(self.record, self.crop, self.spec, cells=CELLS, **options)


def masked(folder, **settings):
    rng = np.random.default_rng(1)
    return Example(folder, mask=Image.fromarray(rng.integers(0, 256, (70, 90), np.uint8)), **settings)


def test_without_draw_it_is_the_planned_crop(tmp_path):
    example = Example(tmp_path, random_crop=True, color_aug=True, face_crop_aug_range=(1.0, 2.0))
    expected = prepare_image(load_image(example.record.path), example.crop, None, False)
    prepared = example.prepare()
    assert torch.equal(prepared.image, expected)
    assert prepared.mask is None
    assert torch.equal(example.prepare(is_flipped=True).image, expected.flip(-1))


def test_the_filter_is_that_of_the_subset(tmp_path):
    example = Example(tmp_path, resize_interpolation="nearest")
    expected = prepare_image(load_image(example.record.path), example.crop, "nearest", False)
    assert torch.equal(example.prepare().image, expected)


def test_one_draw_gives_one_picture_and_draws_differ(tmp_path):
    example = Example(tmp_path, random_crop=True, color_aug=True)
    seeds = (*range(12), *range(12))
    images = [example.prepare(draw=random.Random(seed)).image for seed in seeds]
    assert all(torch.equal(one, other) for one, other in zip(images[:12], images[12:], strict=True))
    assert len({image.numpy().tobytes() for image in images}) > 8


def test_the_mask_is_the_mean_over_the_cells_of_the_crop(tmp_path):
    example = masked(tmp_path)
    mask = example.prepare().mask
    assert (mask.shape, mask.dtype) == ((1, 8, 8), torch.float32)
    pixels = prepare_image(Image.open(example.record.mask).convert("RGB"), example.crop, None, False)
    expected = torch.nn.functional.avg_pool2d((pixels[:1] + 1) / 2, CELLS)
    torch.testing.assert_close(mask, expected, atol=1e-3, rtol=0)
    assert torch.equal(mask, mask.half().float())
    assert torch.equal(example.prepare(is_flipped=True).mask, mask.flip(-1))


def test_colours_leave_the_mask_alone(tmp_path):
    plain, coloured = masked(tmp_path), masked(tmp_path, color_aug=True)
    for seed in range(10):
        assert torch.equal(coloured.prepare(draw=random.Random(seed)).mask, plain.prepare().mask)


def test_alpha_is_the_mask_over_the_background(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (255, 255, 255, 255)
    pixels[:, 32:] = (255, 255, 255, 51)
    example = Example(tmp_path, Image.fromarray(pixels), alpha_mask=True, background=(0, 0, 0))
    prepared = example.prepare()
    assert prepared.mask[0, :, :4].unique().tolist() == [1.0]
    assert prepared.mask[0, :, 4:].unique().tolist() == [pytest.approx(0.2, abs=1e-3)]
    assert prepared.image[:, :, 32:].unique().tolist() == [pytest.approx(-0.6)]
    assert Example(tmp_path, Image.fromarray(pixels)).prepare().mask is None


def test_a_picture_without_alpha_is_learned_everywhere(tmp_path):
    assert torch.equal(Example(tmp_path, alpha_mask=True).prepare().mask, torch.ones(1, 8, 8))


def test_palette_transparency_is_alpha(tmp_path):
    image = Image.fromarray(np.repeat([[0, 1]], 32, axis=1).repeat(64, axis=0).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.info["transparency"] = 0
    mask = Example(tmp_path, image, alpha_mask=True).prepare().mask
    assert mask[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_mask_that_changed_its_shape_is_named(tmp_path):
    example = masked(tmp_path)
    Image.new("L", (70, 90)).save(example.record.mask)
    with pytest.raises(DatasetError, match=r"mask\.png is 70x90 pixels but its picture 90x70"):
        example.prepare()
