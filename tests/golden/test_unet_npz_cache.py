"""Latent caches of sd-scripts for SD 1.x and SDXL equal ours. Source: SOURCES.d/unet_text_and_npz.md."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from library.data.cache import TensorCache, latent_entries, text_entries
from library.data.cache.entry_file import DamagedFile
from library.data.cache.npz import find_latents, find_texts, unusable
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.pixels.images import load_image, prepare_image
from library.families.unet.npz_cache import UnetNpzReader
from library.models.vae import SD_SCALE, SDXL_SCALE, encode_images
from library.records import CropPlan, ImageRecord, Size

DATA = Path(__file__).parent / "data"
CACHE = DATA / "cache"
GOLDEN = json.loads((CACHE / "cache_unet.json").read_text(encoding="utf-8"))
IMAGES = {Path(image["file"]).stem: image for image in GOLDEN["images"]}
WIDTHS = {"clip_l": 32, "clip_g": 96}
FILES = [(family, file) for family in ("sd", "sdxl") for file in GOLDEN["latents"][family]["files"]]


def make_reader(family="sdxl", encoders=("clip_l", "clip_g"), num_chunks=1, is_weighted=False):
    return UnetNpzReader(family, encoders, WIDTHS, num_chunks, is_weighted, torch.float32)


def crop_of(name):
    image = IMAGES[name]
    resized, bucket = Size(*image["resized_wh"]), Size(*image["bucket_wh"])
    return CropPlan(resized, (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2, bucket)


@pytest.fixture(scope="module")
def vae():
    """The encoder of the tiny VAE; its decoder is random and not used."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=SDXL_SCALE,
        shift_factor=0.0,
    ).eval()
    weights = load(gzip.decompress((CACHE / "sdxl_vae_weights.safetensors.gz").read_bytes()))
    left_out = model.load_state_dict(weights, strict=False)
    assert not left_out.unexpected_keys
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in left_out.missing_keys)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("name", "flip"), [("exact", False), ("resized", False), ("resized", True)])
def test_latents_are_those_of_our_encoder(vae, name, flip):
    crop, image = crop_of(name), Size(*IMAGES[name]["image_wh"])
    key = "latents_flipped" if flip else "latents"
    path = CACHE / f"{name}_{image.width:04d}x{image.height:04d}_sdxl.npz"
    found = make_reader().latents(path, [key], bucket=crop.bucket, image=image)[key]
    pixels = prepare_image(load_image(DATA / "pixels" / f"{name}.png"), crop, "area", flip)
    ours = encode_images(vae, pixels[None], torch.zeros(1, 4, crop.bucket.height // 8, crop.bucket.width // 8))[0]
    torch.testing.assert_close(found, ours, atol=1e-3, rtol=0)


def test_latents_of_sd_are_scaled_by_its_own_factor():
    path = CACHE / "exact_0064x0128_sd.npz"
    found = make_reader("sd").latents(path, ["latents"], bucket=Size(64, 128), image=Size(64, 128))["latents"]
    torch.testing.assert_close(found, torch.from_numpy(np.load(path)["latents"]) * SD_SCALE)


def entries_of(folder, name, family, *, flip, alpha, crop=None):
    image = IMAGES[name]
    path = folder / f"{name}.png"
    Image.new("RGB", image["image_wh"]).save(path)
    record = ImageRecord(path, path.name, "", Size(*image["image_wh"]), 1, 0, 0)
    spec = DatasetSpec(
        resolution=Size(96, 96), subsets=(SubsetSpec(image_dir=folder, flip_aug=flip, alpha_mask=alpha),)
    )
    crops = [crop or crop_of(name)]
    return latent_entries([record], crops, [spec], family=family, identity="vae", to_disk=True), [record]


def is_accepted(folder, name, family, *, flip=False, alpha=False, crop=None):
    """Whether a file in `folder` stands for the latents of its picture with these settings."""
    entries, records = entries_of(folder, name, family, flip=flip, alpha=alpha, crop=crop)
    cache = TensorCache(entries)
    found = find_latents(entries, records, cache.check(), reader=make_reader(family))
    return bool(found) and not unusable(cache, found)


@pytest.mark.parametrize(
    ("family", "file"), FILES, ids=lambda value: value if isinstance(value, str) else value["image"]
)
def test_latent_files_are_accepted_where_they_are_in_sd_scripts(tmp_path, family, file):
    shutil.copy(CACHE / file["file"], tmp_path)
    for key, expected in file["accepted_for"]["flip_alpha"].items():
        flip, alpha = (flag == "1" for flag in key)
        assert is_accepted(tmp_path, file["image"], family, flip=flip, alpha=alpha) == expected


def test_a_file_of_another_bucket_is_refused_which_sd_scripts_takes(tmp_path):
    (file,) = (file for file in GOLDEN["latents"]["sdxl"]["files"] if file["image"] == "exact")
    assert file["accepted_for"]["other_bucket_128x64"]
    shutil.copy(CACHE / file["file"], tmp_path)
    assert not is_accepted(tmp_path, "exact", "sdxl", crop=CropPlan(Size(128, 256), 0, 96, Size(128, 64)))


def test_an_old_file_that_is_named_like_the_picture_comes_first(tmp_path):
    shutil.copy(CACHE / "exact_0064x0128_sd.npz", tmp_path)
    shutil.copy(CACHE / "exact_0064x0128_sdxl.npz", tmp_path / "exact.npz")
    entries, records = entries_of(tmp_path, "exact", "sd", flip=False, alpha=False)
    (found,) = find_latents(entries, records, TensorCache(entries).check(), reader=make_reader("sd")).values()
    assert found.path.name == "exact.npz"
    (tmp_path / "exact.npz").unlink()
    (found,) = find_latents(entries, records, TensorCache(entries).check(), reader=make_reader("sd")).values()
    assert found.path.name == "exact_0064x0128_sd.npz"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"crop_ltrb": np.array([14.0, 8.0, 112.0, 72.0])}, "another bucket"),
        ({"crop_ltrb": None}, "it has no crop_ltrb"),
        ({"original_size": np.array([97, 150])}, "a picture of another size"),
    ],
)
def test_a_file_whose_box_or_size_is_another_is_refused(tmp_path, changed, reason):
    arrays = {**np.load(CACHE / "resized_0150x0097_sd.npz"), **changed}
    np.savez(tmp_path / "x.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DamagedFile, match=reason):
        make_reader("sd").latents(tmp_path / "x.npz", ["latents"], bucket=Size(128, 64), image=Size(150, 97))


def test_a_box_in_whole_numbers_is_as_good(tmp_path):
    arrays = {**np.load(CACHE / "resized_0150x0097_sd.npz")}
    np.savez(tmp_path / "x.npz", **{**arrays, "crop_ltrb": arrays["crop_ltrb"].astype(np.int64)})
    assert make_reader("sd").latents(tmp_path / "x.npz", ["latents"], bucket=Size(128, 64), image=Size(150, 97))


def test_text_files_are_found_for_sdxl_only(tmp_path):
    shutil.copy(CACHE / "exact_te_outputs.npz", tmp_path)
    record = ImageRecord(tmp_path / "exact.png", "exact.png", "a cat", Size(64, 128), 1, 0, 0)
    for family, expected in (("sdxl", 1), ("sd", 0)):
        entries, ids = text_entries([record], [["a cat"]], family=family, identity="clip", to_disk=True)
        found = find_texts(ids, [record], TensorCache(entries).check(), reader=make_reader(family))
        assert len(found) == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_chunks": 2}, "hidden_state1 has the shape 77x32, not 152x32"),
        ({"is_weighted": True}, "does not say whether"),
    ],
)
def test_a_text_file_of_other_settings_is_refused(settings, reason):
    with pytest.raises(DamagedFile, match=reason):
        make_reader(**settings).texts(CACHE / "exact_te_outputs.npz")


def test_only_the_states_of_wanted_encoders_are_read():
    assert make_reader(encoders=("clip_l",)).texts(CACHE / "exact_te_outputs.npz").keys() == {"clip_l"}
