"""A mask stays where it belongs: where the picture's red channel is the mask, it is so after everything is done."""

import random
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.pixels.pictures import prepare_picture
from library.data.plan.buckets import plan_crop
from library.records import INTERPOLATIONS, ImageRecord, Size

CELLS = 8
ORIENTATION = 0x0112
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
LOSSLESS = 1.5 / 255  # rounding of pixels, and of the mask to float16
LOSSY = 5 / 255


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def save_turned(upright, path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = upright.transpose(UNDO[orientation]) if orientation > 1 else upright
    stored.save(path, exif=exif, **({"quality": 97} if path.suffix == ".jpg" else {}))


def pattern(size, seed, *, is_smooth):
    """Shape [height, width], uint8: without any symmetry."""
    rng = np.random.default_rng(seed)
    if not is_smooth:
        return rng.integers(0, 256, (size.height, size.width), np.uint8)
    coarse = rng.integers(0, 256, (4, 4)).astype(np.float32)
    return cv2.resize(coarse, tuple(size), interpolation=cv2.INTER_LINEAR).round().astype(np.uint8)


def coloured(red):
    return Image.fromarray(np.stack([red, red // 2, 255 - red], -1))


augmentations = st.fixed_dictionaries(
    {
        "random_crop": st.booleans(),
        "face_crop_aug_range": st.sampled_from([None, (1.0, 3.0)]),
        "resize_interpolation": st.sampled_from([None, *INTERPOLATIONS]),
    }
)
shapes = st.builds(Size, st.integers(33, 230), st.integers(33, 230))
orientations = st.integers(1, 8)
datasets = st.sampled_from(
    [
        {},
        {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 96, "bucket_reso_steps": 16},
        {"enable_bucket": True, "bucket_no_upscale": True, "bucket_reso_steps": 16},
    ]
)


def prepare(record, spec, *, is_flipped, seed):
    crop = plan_crop(record.size, spec)
    draw = None if seed is None else random.Random(seed)
    return prepare_picture(record, crop, spec, is_flipped=is_flipped, draw=draw, cells=CELLS)


def red_of(image):
    return torch.nn.functional.avg_pool2d((image[:1] + 1) / 2, CELLS)


def spec_of(dataset, subset):
    if dataset.get("enable_bucket"):
        subset = {**subset, "face_crop_aug_range": None}
    return DatasetSpec(resolution=Size(64, 48), **dataset, subsets=(SubsetSpec(image_dir=Path("."), **subset),))


@settings(max_examples=150)
@given(
    size=shapes,
    turns=st.tuples(orientations, orientations),
    dataset=datasets,
    subset=augmentations,
    is_flipped=st.booleans(),
    seed=st.none() | st.integers(0, 99),
)
def test_mask_file_follows_its_picture(folder, size, turns, dataset, subset, is_flipped, seed):
    """Picture and mask are each stored turned in a way of its own."""
    spec = spec_of(dataset, subset)
    red = pattern(size, sum(size), is_smooth=False)
    path, mask = folder / "p_60_40_20_30.png", folder / "m.png"
    save_turned(coloured(red), path, turns[0])
    save_turned(Image.fromarray(red), mask, turns[1])
    record = ImageRecord(path, "p", "", size, 1, 0, 0, mask=mask)
    prepared = prepare(record, spec, is_flipped=is_flipped, seed=seed)
    assert prepared.mask.shape[-2:] == (prepared.image.shape[-2] // CELLS, prepared.image.shape[-1] // CELLS)
    torch.testing.assert_close(prepared.mask, red_of(prepared.image), atol=LOSSLESS, rtol=0)


@settings(max_examples=60)
@given(
    size=shapes,
    orientation=orientations,
    dataset=datasets,
    subset=augmentations,
    is_flipped=st.booleans(),
    seed=st.none() | st.integers(0, 99),
)
def test_transparency_follows_its_picture(folder, size, orientation, dataset, subset, is_flipped, seed):
    """Red laid on black is as red as it is opaque."""
    spec = spec_of(dataset, {**subset, "alpha_mask": True, "background": (0, 0, 0)})
    alpha = pattern(size, sum(size), is_smooth=False)
    full = np.full_like(alpha, 255)
    path = folder / "t_60_40_20_30.png"
    save_turned(Image.fromarray(np.stack([full, full, full, alpha], -1)), path, orientation)
    prepared = prepare(ImageRecord(path, "t", "", size, 1, 0, 0), spec, is_flipped=is_flipped, seed=seed)
    torch.testing.assert_close(prepared.mask, red_of(prepared.image), atol=LOSSLESS, rtol=0)


@settings(max_examples=60)
@given(
    size=st.builds(Size, st.integers(200, 700), st.integers(200, 700)),
    orientation=orientations,
    dataset=datasets,
    subset=augmentations,
    is_flipped=st.booleans(),
    seed=st.none() | st.integers(0, 99),
)
def test_mask_follows_a_jpeg_that_is_decoded_small(folder, size, orientation, dataset, subset, is_flipped, seed):
    """The picture is a JPEG of several times its size in training, the mask a PNG."""
    spec = spec_of(dataset, subset)
    grey = pattern(size, sum(size), is_smooth=True)
    path, mask = folder / "j_160_140_60_50.jpg", folder / "j.png"
    save_turned(Image.fromarray(grey).convert("RGB"), path, orientation)
    Image.fromarray(grey).save(mask)
    record = ImageRecord(path, "j", "", size, 1, 0, 0, mask=mask)
    prepared = prepare(record, spec, is_flipped=is_flipped, seed=seed)
    torch.testing.assert_close(prepared.mask, red_of(prepared.image), atol=LOSSY, rtol=0)


@settings(max_examples=30)
@given(
    size=st.builds(Size, st.integers(60, 120), st.integers(60, 120)),
    factor=st.integers(2, 4),
    is_larger=st.booleans(),
    subset=augmentations,
    is_flipped=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mask_of_another_size_lies_over_the_whole_picture(folder, size, factor, is_larger, subset, is_flipped, seed):
    spec = spec_of({}, subset)
    large = Size(size.width * factor, size.height * factor)
    sizes = (size, large) if is_larger else (large, size)
    path, mask = folder / "s_60_40_20_30.png", folder / "s.png"
    coloured(pattern(sizes[0], sum(size), is_smooth=True)).save(path)
    Image.fromarray(pattern(sizes[1], sum(size), is_smooth=True)).save(mask)
    record = ImageRecord(path, "s", "", sizes[0], 1, 0, 0, mask=mask)
    prepared = prepare(record, spec, is_flipped=is_flipped, seed=seed)
    is_exact = subset["resize_interpolation"] not in ("nearest", "box")  # which take whole pixels only
    torch.testing.assert_close(prepared.mask, red_of(prepared.image), atol=LOSSY if is_exact else 4 * LOSSY, rtol=0)


@settings(max_examples=30)
@given(subset=augmentations, is_flipped=st.booleans(), seed=st.integers(0, 99))
def test_colours_move_no_mask(folder, subset, is_flipped, seed):
    size = Size(111, 83)
    red = pattern(size, 1, is_smooth=False)
    path, mask = folder / "c_60_40_20_30.png", folder / "c.png"
    coloured(red).save(path)
    Image.fromarray(red).save(mask)
    record = ImageRecord(path, "c", "", size, 1, 0, 0, mask=mask)
    masks = [
        prepare(record, spec_of({}, {**subset, "color_aug": color_aug}), is_flipped=is_flipped, seed=seed).mask
        for color_aug in (False, True)
    ]
    assert torch.equal(*masks)
