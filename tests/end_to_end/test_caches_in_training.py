"""Cached equals uncached, and a complete cache is left alone."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from library.tensorfile import read_header, read_tensors, write_tensors

STEPS = "--max_train_steps=4"
LATENTS, TEXT = "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk"
MASKS = ("--apply_lg_attn_mask", "--apply_t5_attn_mask")
UNET_ONLY = "--network_train_unet_only"


def assert_same(run, other):
    """Weights and losses up to the rounding of encoders that ran over other batches."""
    torch.testing.assert_close(run.weights, other.weights, rtol=0, atol=1e-5)
    assert run.losses == pytest.approx(other.losses, rel=1e-5)


def moved(run):
    """The furthest that a weight of `up` has gone from zero."""
    return max(tensor.abs().max().item() for name, tensor in run.weights.items() if "lora_up" in name)


def entries(folder: Path, kind: str = ""):
    """{name: what changes when the file is written anew}, of the cache files of a folder."""
    found = sorted(folder.glob(f"*{kind}.safetensors"))
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def changed(before, after):
    assert before.keys() <= after.keys()
    return {name for name in after if after[name] != before.get(name)}


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


@pytest.mark.parametrize("flip", [False, True])
def test_cached_latents_train_the_same_weights_as_live_ones(training, flip):
    names = ["red_circle.png", "red_star.png", "white_square.jpg", "blue_circle.png"]  # several sizes
    dataset = training.dataset(training.pictures(names), flip_aug=flip)
    live = training.compare(dataset, STEPS)
    assert moved(live) > 1e-3
    for flags in (["--cache_latents"], [LATENTS], [LATENTS, "--vae_batch_size=3"]):
        assert_same(training.compare(dataset, STEPS, *flags), live)


def test_mirrored_pictures_are_trained(training):
    pictures = training.pictures()
    plain = training.run(training.dataset(pictures), STEPS, "--cache_latents")
    flipped = training.run(training.dataset(pictures, flip_aug=True), STEPS, "--cache_latents")
    assert plain.losses != pytest.approx(flipped.losses, rel=1e-3)


@pytest.mark.parametrize("masks", [(), MASKS], ids=["plain", "masked"])
def test_cached_text_trains_the_same_weights_as_live_encoders(training, dataset, masks):
    live = training.compare(dataset, STEPS, UNET_ONLY, *masks)
    assert moved(live) > 1e-3
    for flags in (["--cache_text_encoder_outputs"], [TEXT], [TEXT, "--text_encoder_batch_size=3"]):
        assert_same(training.compare(dataset, STEPS, UNET_ONLY, *masks, *flags), live)


@pytest.mark.parametrize("masks", [(), MASKS], ids=["plain", "masked"])
def test_clip_trained_live_with_t5_from_the_cache_equals_all_live(training, dataset, masks):
    live = training.compare(dataset, STEPS, *masks)
    cached = training.compare(dataset, STEPS, *masks, TEXT)
    assert any(name.startswith("lora_te2_") for name in live.weights)
    assert list(cached.trainer.text.encoders) == ["clip_l", "clip_g"]
    assert_same(cached, live)


@pytest.mark.parametrize("flags", [(), (UNET_ONLY,)], ids=["with encoders", "denoiser"])
def test_cached_equals_live_in_bf16(training, dataset, flags):
    bf16 = (STEPS, "--mixed_precision=bf16", *flags)
    live = training.compare(dataset, *bf16)
    cached = training.compare(dataset, *bf16, LATENTS, TEXT)
    assert moved(live) > 1e-3
    assert_same(cached, live)


def test_masks_change_what_is_trained(training, dataset):
    plain = training.unet_only(dataset, STEPS)
    masked = training.unet_only(dataset, STEPS, *MASKS)
    assert plain.losses != pytest.approx(masked.losses, rel=1e-3)


def test_encoder_dropout_is_the_same_cached_and_live(training, dataset):
    dropout = ("--t5_dropout_rate=0.5", "--clip_l_dropout_rate=0.5", "--clip_g_dropout_rate=0.5")
    live = training.compare(dataset, STEPS, UNET_ONLY, *dropout)
    cached = training.compare(dataset, STEPS, UNET_ONLY, *dropout, "--cache_text_encoder_outputs")
    without = training.compare(dataset, STEPS, UNET_ONLY, "--cache_text_encoder_outputs")
    assert_same(cached, live)
    assert cached.losses != pytest.approx(without.losses, rel=1e-3)


# Caches of the run before


def test_run_with_complete_caches_needs_no_tokenizer_and_imports_no_encoder(training, launch, tmp_path):
    model = Path(shutil.copytree(training.model.parent, tmp_path / "model")) / training.model.name
    training.model = model
    dataset = training.dataset(training.pictures())
    flags = (STEPS, UNET_ONLY, LATENTS, TEXT, "--no_half_vae")
    first = training.run(dataset, *flags)
    before = entries(tmp_path / "pictures")
    assert len(before) == 8  # four pictures, four captions
    for folder in model.parent.glob("tokenizer*"):
        shutil.rmtree(folder)

    second = launch(training.arguments(dataset, *flags))
    assert second.code == 0, second.output
    account = second.accounts[0]
    assert account["losses"] == pytest.approx(first.losses, rel=1e-5)
    assert account["entries"] == []
    assert entries(tmp_path / "pictures") == before
    packages = {name.partition(".")[0] for name in account["modules"]}
    assert "torch" in packages
    assert packages.isdisjoint({"diffusers", "transformers", "tokenizers", "sentencepiece", "bitsandbytes"})


def test_edited_caption_makes_only_its_own_entry_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    training.unet_only(dataset, STEPS, LATENTS, TEXT)
    before = entries(pictures)
    (pictures / "red_star.txt").write_text("an orange star", encoding="utf-8")
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    assert changed(before, entries(pictures)) == {"red_star.png_sd3_te.safetensors"}
    assert "text: making 1 of 4 (1 the caption changed)" in again.log
    assert any(line.startswith("latents: all 4 are cached") for line in again.log)


def test_edited_picture_makes_only_its_own_entry_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    training.unet_only(dataset, STEPS, LATENTS, TEXT)
    before = entries(pictures)
    shutil.copy(pictures / "blue_triangle.png", pictures / "red_star.png")
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    assert changed(before, entries(pictures)) == {"red_star.png_0064x0064_sd3.safetensors"}
    assert "latents: making 1 of 4 (1 the image changed)" in again.log
    assert any(line.startswith("text encoder outputs: all 4 are cached") for line in again.log)


def test_another_mask_setting_makes_all_texts_and_no_latents_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    training.unet_only(dataset, STEPS, LATENTS, TEXT)
    before = entries(pictures)
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT, "--apply_t5_attn_mask")
    assert changed(before, entries(pictures)) == set(entries(pictures, "_te"))
    assert "text: making 4 of 4 (4 another text encoder, precision or setting)" in again.log
    fresh = training.unet_only(dataset, STEPS, "--apply_t5_attn_mask")
    assert again.losses == pytest.approx(fresh.losses, rel=1e-5)


def test_another_vae_makes_all_latents_and_no_texts_anew(training, dataset, tiny_sd3_factory, tmp_path):
    pictures, files = tmp_path / "pictures", tiny_sd3_factory(bundle=False)
    separate = [f"--clip_l={files.clip_l}", f"--clip_g={files.clip_g}", f"--t5xxl={files.t5xxl}"]
    training.unet_only(dataset, STEPS, LATENTS, TEXT, *separate, f"--vae={files.vae}", model=files.model)
    before = entries(pictures)
    tensors = read_tensors(read_header(files.vae))
    tensors["encoder.conv_out.bias"] = tensors["encoder.conv_out.bias"] + 0.5
    write_tensors(tmp_path / "vae.safetensors", tensors)
    vae = f"--vae={tmp_path / 'vae.safetensors'}"
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT, *separate, vae, model=files.model)
    assert changed(before, entries(pictures)) == set(entries(pictures, "_0064x0064_sd3"))
    assert "latents: making 4 of 4 (4 another VAE or precision)" in again.log


def test_damaged_entry_is_made_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    first = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    entry = pictures / "red_star.png_0064x0064_sd3.safetensors"
    before = entries(pictures)
    os.truncate(entry, entry.stat().st_size - 10)
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    assert changed(before, entries(pictures)) == {entry.name}
    assert again.losses == pytest.approx(first.losses, rel=1e-5)
