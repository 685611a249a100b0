"""Caches of sd-scripts say what our encoders would. Source: tests/golden/data/SOURCES.d/npz_cache.md."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from library.data.cache import TensorCache, latent_entries
from library.data.cache.entry_file import DamagedFile
from library.data.cache.npz import find_latents, unusable
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.pixels.images import load_image, prepare_image
from library.data.pixels.pictures import prepare_picture
from library.families.sd3.npz_cache import Sd3NpzReader
from library.families.sd3.text import encode
from library.models.text_encoders import load_clip, load_t5
from library.models.vae import encode_images, load_vae
from library.records import CropPlan, ImageRecord, Size

DATA = Path(__file__).parent / "data"
CACHE = DATA / "cache"
GOLDEN = json.loads((CACHE / "cache.json").read_text(encoding="utf-8"))
IMAGES = {Path(image["file"]).stem: image for image in GOLDEN["images"]}
WIDTHS = {"clip_l": 64, "clip_g": 96}
ENCODERS = ("clip_l", "clip_g", "t5xxl")
T5_WIDTH = 4096


def make_reader(lg=False, t5=False, t5_length=8):
    return Sd3NpzReader(
        WIDTHS, ENCODERS, t5_length, T5_WIDTH, apply_lg_attn_mask=lg, apply_t5_attn_mask=t5, dtype=torch.float32
    )


@pytest.fixture(scope="module")
def vae():
    return load_vae(load(gzip.decompress((DATA / "sd3_vae_weights.safetensors.gz").read_bytes())))


def encoded(vae, path, crop, flip=False):
    pixels = prepare_image(load_image(path), crop, "area", flip)
    with torch.no_grad():
        return encode_images(vae, pixels[None], torch.zeros(1, 16, crop.bucket.height // 8, crop.bucket.width // 8))[0]


def crop_of(name):
    image = IMAGES[name]
    resized, bucket = Size(*image["resized_wh"]), Size(*image["bucket_wh"])
    return CropPlan(resized, (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2, bucket)


@pytest.mark.parametrize("bucket", [Size(64, 128), Size(64, 64)])
def test_latents_of_both_resolutions_in_a_file_are_those_of_our_encoder(vae, bucket):
    crop = CropPlan(Size(64, 128), 0, (128 - bucket.height) // 2, bucket)
    path = CACHE / "exact_0064x0128_sd3.npz"
    found = make_reader().latents(path, ["latents"], bucket=bucket, image=Size(64, 128))["latents"]
    torch.testing.assert_close(found, encoded(vae, DATA / "pixels" / "exact.png", crop), atol=1e-3, rtol=0)


def test_latents_of_a_resized_picture_and_its_mirror_image_are_those_of_our_encoder(vae):
    crop = crop_of("resized")
    found = make_reader().latents(
        CACHE / "resized_0150x0097_sd3.npz", ["latents", "latents_flipped"], bucket=crop.bucket, image=Size(150, 97)
    )
    path = DATA / "pixels" / "resized.png"
    for name, flip in (("latents", False), ("latents_flipped", True)):
        torch.testing.assert_close(found[name], encoded(vae, path, crop, flip), atol=1e-3, rtol=0)


def test_the_transparency_in_a_file_is_that_of_the_picture_at_latent_size():
    names = ["latents", "latents_flipped", "mask"]
    found = make_reader().latents(CACHE / "alpha_0100x0130_sd3.npz", names, bucket=Size(96, 96), image=Size(100, 130))
    alpha = load(gzip.decompress((CACHE / "alpha_mask.safetensors.gz").read_bytes()))["alpha_mask.alpha"]
    expected = alpha.reshape(12, 8, 12, 8).mean((1, 3))
    assert (found["mask"].shape, found["mask"].dtype) == ((1, 12, 12), torch.float16)
    torch.testing.assert_close(found["mask"][0].float(), expected, atol=1e-3, rtol=0)
    assert 0 < expected.mean() < 1
    subset = SubsetSpec(image_dir=CACHE, alpha_mask=True)
    spec = DatasetSpec(resolution=Size(96, 96), resize_interpolation="area", subsets=(subset,))
    record = ImageRecord(CACHE / "alpha.png", "alpha.png", "", Size(100, 130), 1, 0, 0)
    ours = prepare_picture(record, crop_of("alpha"), spec, cells=8).mask
    torch.testing.assert_close(ours, found["mask"].float(), atol=0.01, rtol=0)


def is_accepted(folder, name, *, flip, alpha):
    """Whether the file in `folder` stands for the latents of its picture with these settings."""
    image = IMAGES[name]
    path = folder / f"{name}.png"
    Image.new("RGB", image["image_wh"]).save(path)
    record = ImageRecord(path, path.name, "", Size(*image["image_wh"]), 1, 0, 0)
    subset = SubsetSpec(image_dir=folder, flip_aug=flip, alpha_mask=alpha)
    spec = DatasetSpec(resolution=Size(96, 96), subsets=(subset,))
    entries = latent_entries([record], [crop_of(name)], [spec], family="sd3", identity="vae", to_disk=True)
    cache = TensorCache(entries)
    found = find_latents(entries, [record], cache.check(), reader=make_reader())
    return bool(found) and not unusable(cache, found)


@pytest.mark.parametrize("file", GOLDEN["latents"]["sd3"]["files"][:3], ids=lambda file: file["image"])
def test_latent_files_are_accepted_where_they_are_in_sd_scripts(tmp_path, file):
    shutil.copy(CACHE / file["file"], tmp_path)
    for key, expected in file["accepted_for"]["flip_alpha"].items():
        flip, alpha = (flag == "1" for flag in key)
        assert is_accepted(tmp_path, file["image"], flip=flip, alpha=alpha) == expected


@pytest.mark.parametrize("file", GOLDEN["text"]["sd3"]["files"], ids=lambda file: file["file"])
def test_text_files_are_accepted_where_they_are_in_sd_scripts(file):
    for key, expected in file["accepted_for_lg_t5"].items():
        lg, t5 = (flag == "1" for flag in key)
        reader = make_reader(lg, t5)
        if expected:
            assert reader.texts(CACHE / file["file"])["t5xxl"].shape == (8, 4096)
        else:
            with pytest.raises(DamagedFile, match="it was made with"):
                reader.texts(CACHE / file["file"])


@pytest.fixture(scope="module")
def encoders():
    weights = load(gzip.decompress((CACHE / "text_weights.safetensors.gz").read_bytes()))

    def part(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}

    return {
        "clip_l": load_clip(part("clip_l."), kind="clip_l", num_heads=4),
        "clip_g": load_clip(part("clip_g."), kind="clip_g", num_heads=6),
        "t5xxl": load_t5(part("t5.")),
    }


@pytest.mark.parametrize(("name", "is_masked"), [("exact", False), ("resized", True)])
def test_texts_are_those_of_our_encoders(encoders, name, is_masked):
    golden = GOLDEN["text"]["sd3"]
    tokens = {}
    for encoder, short in (("clip_l", "l"), ("clip_g", "g"), ("t5xxl", "t5")):
        tokens[encoder] = torch.tensor([golden[f"{short}_tokens"]])
        tokens[f"{encoder}_mask"] = torch.tensor([golden[f"{short}_attn_mask"]])
    with torch.no_grad():
        expected = encode(encoders, tokens, apply_lg_attn_mask=is_masked, apply_t5_attn_mask=is_masked)
    found = make_reader(is_masked, is_masked).texts(CACHE / f"{name}_sd3_te.npz")
    assert found.keys() == expected.keys()
    for key in ("clip_l", "clip_g", "clip_g_pooled", "t5xxl"):
        torch.testing.assert_close(found[key], expected[key][0], atol=1e-4, rtol=0)
    assert bool(found["clip_l"][-1].any()) is not is_masked
    pooled = np.load(CACHE / f"{name}_sd3_te.npz")["lg_pooled"]
    assert torch.equal(found["clip_l_pooled"], torch.from_numpy(pooled[:64]))


def test_another_t5_length_is_refused():
    with pytest.raises(DamagedFile, match="t5_attn_mask has the shape 8, not 256"):
        make_reader(t5_length=256).texts(CACHE / "exact_sd3_te.npz")
