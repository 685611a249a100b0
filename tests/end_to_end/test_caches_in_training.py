"""Cached equals uncached, and a complete cache is left alone."""

import hashlib
import os
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import toml
import torch
from PIL import Image

from library.data.cache.places import settings_mark
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
    """{name: what changes when the file is written anew}, of the cache files of a folder and below."""
    found = sorted(folder.rglob(f"*{kind}.safetensors"))
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def text_entry(caption, t5_mask=False):
    """Name of the cache file of a caption."""
    settings = f"t5xxl_max_token_length=16 apply_t5_attn_mask={t5_mask} apply_lg_attn_mask=False dtype=torch.float32"
    digest = hashlib.sha256(caption.encode()).hexdigest()[:24]
    return f"text_encoder_cache/{digest}{settings_mark(settings)}_sd3_te.safetensors"


def latent_entry(image):
    """Name of the cache file of a picture of 64 x 64 pixels."""
    return f"{image}_0064x0064{settings_mark('torch.float32')}_sd3.safetensors"


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


def test_cached_masks_train_the_same_weights_as_live_ones(training, tmp_path):
    pictures, masks = training.pictures(), tmp_path / "masks"
    masks.mkdir()
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    for image in pictures.glob("*.png"):
        Image.fromarray(ramp).save(masks / image.name)
    general = training.dataset(pictures, flip_aug=True)
    table = toml.loads(general.read_text(encoding="utf-8"))
    table["datasets"][0]["subsets"][0]["conditioning_data_dir"] = str(masks)
    general.write_text(toml.dumps(table), encoding="utf-8")
    live = training.compare(general, STEPS, "--masked_loss")
    assert moved(live) > 1e-3
    for flags in (["--cache_latents"], [LATENTS]):
        assert_same(training.compare(general, STEPS, "--masked_loss", *flags), live)
    Image.fromarray(255 - ramp).save(masks / "red_star.png")
    again = training.compare(general, STEPS, "--masked_loss", LATENTS)
    assert "latents: making 1 of 4 (1 the mask changed)" in again.log
    assert again.losses != pytest.approx(live.losses, rel=1e-3)


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
    assert changed(before, entries(pictures)) == {text_entry("an orange star")}
    assert "text: making 1 of 4 (1 new)" in again.log
    assert any(line.startswith("latents: all 4 are cached") for line in again.log)


def test_edited_picture_makes_only_its_own_entry_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    training.unet_only(dataset, STEPS, LATENTS, TEXT)
    before = entries(pictures)
    shutil.copy(pictures / "blue_triangle.png", pictures / "red_star.png")
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    assert changed(before, entries(pictures)) == {latent_entry("red_star.png")}
    assert "latents: making 1 of 4 (1 the image changed)" in again.log
    assert any(line.startswith("text encoder outputs: all 4 are cached") for line in again.log)


def test_another_mask_setting_makes_all_texts_and_no_latents_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    training.unet_only(dataset, STEPS, LATENTS, TEXT)
    before = entries(pictures)
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT, "--apply_t5_attn_mask")
    captions = [file.read_text(encoding="utf-8").strip() for file in pictures.glob("*.txt")]
    assert changed(before, entries(pictures)) == {text_entry(caption, t5_mask=True) for caption in captions}
    assert "text: making 4 of 4 (4 new)" in again.log
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
    assert changed(before, entries(pictures)) == set(entries(pictures, "_sd3"))
    assert "latents: making 4 of 4 (4 another VAE or precision)" in again.log


def test_equal_captions_are_encoded_once(training, dataset, tmp_path):
    for file in (tmp_path / "pictures").glob("*.txt"):
        file.write_text("a shape", encoding="utf-8")
    run = training.unet_only(dataset, STEPS, TEXT)
    assert set(entries(tmp_path / "pictures", "_te")) == {text_entry("a shape")}
    assert "text: making 1 of 1 (1 new)" in run.log


def test_damaged_entry_is_made_anew(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    first = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    entry = pictures / latent_entry("red_star.png")
    before = entries(pictures)
    os.truncate(entry, entry.stat().st_size - 10)
    again = training.unet_only(dataset, STEPS, LATENTS, TEXT)
    assert changed(before, entries(pictures)) == {entry.name}
    assert again.losses == pytest.approx(first.losses, rel=1e-5)


def test_entry_that_is_damaged_behind_its_header_costs_the_cache_and_not_the_training(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    first = training.unet_only(dataset, STEPS, LATENTS)
    entry = pictures / latent_entry("red_star.png")
    content = bytearray(entry.read_bytes())
    content[-7] ^= 1
    entry.write_bytes(content)
    again = training.unet_only(dataset, STEPS, LATENTS)
    assert again.losses == pytest.approx(first.losses, rel=1e-5)
    (line,) = [line for line in again.log if entry.name in line]
    assert "its checksum is wrong" in line
    assert not entry.exists()
    third = training.unet_only(dataset, STEPS, LATENTS)
    assert "latents: making 1 of 4 (1 new)" in third.log


# Captions that change


VARIANTS = ("--cache_text_encoder_outputs", "--text_encoder_cache_variants=4")


def test_shuffled_captions_train_with_cached_outputs(training, tmp_path):
    pictures = training.pictures()
    for file in pictures.glob("*.txt"):
        file.write_text("a shape, red, green, blue, on white", encoding="utf-8")
    dataset = training.dataset(pictures, shuffle_caption=True, keep_tokens=1)
    fixed = training.unet_only(training.dataset(pictures), STEPS)
    in_memory = training.unet_only(dataset, STEPS, *VARIANTS)
    on_disk = training.unet_only(dataset, STEPS, *VARIANTS, TEXT)
    assert on_disk.losses == in_memory.losses
    assert in_memory.losses != pytest.approx(fixed.losses, rel=1e-3)
    assert 4 < len(entries(pictures, "_te")) <= 16  # four of each picture, those that are equal once
    seen = {caption for batch in on_disk.trainer.batches_from(0) for caption in batch.captions}
    assert len(seen) > 2
    assert all(sorted(caption.split(", ")[1:]) == ["blue", "green", "on white", "red"] for caption in seen)
    assert all(caption.startswith("a shape, ") for caption in seen)


@pytest.mark.parametrize("flags", [(UNET_ONLY,), ()], ids=["all cached", "CLIP live"])
def test_cached_states_are_those_of_the_drawn_caption(training, flags):
    rules = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.3, "caption_dropout_rate": 0.3}
    pictures = training.pictures()
    for file in pictures.glob("*.txt"):
        file.write_text("a shape, red, green, blue, on white", encoding="utf-8")
    trainer = training.run(training.dataset(pictures, **rules), "--max_train_steps=8", *VARIANTS, *flags).trainer
    family, files = trainer.family, trainer.files
    device = torch.device("cpu")
    encoders = family.load_text_encoders(files, torch.float32, device, family.encoder_names)
    tokenizers = family.load_tokenizers(files, family.encoder_names)
    batches = list(islice(trainer.batches_from(0), 8))
    for batch in batches:
        with torch.no_grad():
            live = family.encode_text(encoders, family.tokenize(tokenizers, batch.captions))
        assert batch.text.keys() == (live.keys() if flags else {"t5xxl"})
        for name, states in batch.text.items():
            torch.testing.assert_close(states, live[name], rtol=0, atol=1e-5)
    captions = [caption for batch in batches for caption in batch.captions]
    assert "" in captions
    assert len(set(captions)) > 3


@pytest.mark.parametrize("rule", [{"caption_dropout_rate": 0.5}, {"caption_dropout_every_n_epochs": 2}])
def test_dropped_captions_are_the_cached_empty_one(training, rule):
    pictures = training.pictures()
    dataset = training.dataset(pictures, **rule)
    live = training.compare(dataset, STEPS, UNET_ONLY)
    cached = training.compare(dataset, STEPS, UNET_ONLY, TEXT)
    assert_same(cached, live)
    assert text_entry("") in entries(pictures)
    kept = training.compare(training.dataset(pictures), STEPS, UNET_ONLY, TEXT)
    assert cached.losses != pytest.approx(kept.losses, rel=1e-3)


# Other places, and caches of another program


def test_a_cache_folder_leaves_the_pictures_folder_alone(training, dataset, tmp_path):
    pictures, cache = tmp_path / "pictures", tmp_path / "cache"
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    pictures.chmod(0o500)
    try:
        flags = (STEPS, LATENTS, TEXT, f"--cache_dir={cache}")
        first = training.unet_only(dataset, *flags)
        written = entries(cache)
        again = training.unet_only(dataset, *flags)
    finally:
        pictures.chmod(0o700)
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before
    assert len(written) == 8
    assert entries(cache) == written
    assert again.losses == first.losses


def to_npz(pictures):
    """Turn the cache files of the pictures into what sd-scripts would have written."""
    for image in pictures.glob("*.png"):
        path = pictures / latent_entry(image.name)
        latents = read_tensors(read_header(path))["latents"]
        arrays = {"latents_8x8": (latents / 1.5305 + 0.0609).numpy()}
        arrays |= {"original_size_8x8": np.array([64, 64]), "crop_ltrb_8x8": np.array([0.0, 0, 64, 64])}
        np.savez(pictures / f"{image.stem}_0064x0064_sd3.npz", **arrays)
        path.unlink()
        caption = image.with_suffix(".txt").read_text(encoding="utf-8").strip()
        path = pictures / text_entry(caption)
        states = {name: tensor.numpy() for name, tensor in read_tensors(read_header(path)).items()}
        lg_pooled = np.concatenate([states["clip_l_pooled"], states["clip_g_pooled"]])
        masks = {"clip_l_attn_mask": np.ones(77, int), "clip_g_attn_mask": np.ones(77, int)}
        np.savez(
            pictures / f"{image.stem}_sd3_te.npz",
            lg_out=np.concatenate([states["clip_l"], states["clip_g"]], axis=1),
            lg_pooled=lg_pooled,
            t5_out=states["t5xxl"],
            **masks,
            t5_attn_mask=np.ones(16, int),
            apply_lg_attn_mask=np.array(False),
            apply_t5_attn_mask=np.array(False),
        )
        path.unlink()


def test_caches_of_sd_scripts_are_used_when_asked_for(training, dataset, tmp_path):
    pictures = tmp_path / "pictures"
    flags = (STEPS, LATENTS, TEXT)
    first = training.unet_only(dataset, *flags)
    to_npz(pictures)
    os.truncate(pictures / "red_star_0064x0064_sd3.npz", 300)
    asked = training.unet_only(dataset, *flags, "--skip_cache_check")
    assert asked.losses == pytest.approx(first.losses, rel=1e-4)
    assert list(entries(pictures)) == [latent_entry("red_star.png")]
    used = [line.partition(" are used")[0] for line in asked.log if "--skip_cache_check" in line]
    assert used == [f"{what} .npz caches of sd-scripts" for what in ("latents: 3", "text: 4")]
    assert any("1 its .npz cache cannot be used: it is damaged, or not an .npz archive" in line for line in asked.log)
    archives = {path.name: path.read_bytes() for path in pictures.glob("*.npz")}
    plain = training.unet_only(dataset, *flags)
    assert len(entries(pictures)) == 8
    assert {path.name: path.read_bytes() for path in pictures.glob("*.npz")} == archives
    hints = [line.partition(" lie")[0] for line in plain.log if "--skip_cache_check" in line]
    assert hints == [f"{what} .npz caches of sd-scripts" for what in ("latents: 3", "text: 4")]


def test_two_processes_use_and_make_the_same_entries(training, launch_pair, tmp_path):
    dataset = training.dataset(training.pictures(), shuffle_caption=True)
    pictures = tmp_path / "pictures"
    flags = ("--max_train_steps=2", LATENTS, TEXT, *VARIANTS, UNET_ONLY)
    alone = training.run(dataset, "--gradient_accumulation_steps=2", *flags)
    made = entries(pictures)
    for path in pictures.rglob("*.safetensors"):
        path.unlink()
    both = launch_pair(training.arguments(dataset, *flags))
    assert both.code == 0, both.output
    assert entries(pictures).keys() == made.keys()
    shares = [account["entries"] for account in both.accounts]
    assert sorted(name for share in shares for name in share) == sorted(str(pictures / name) for name in made)
    assert all(shares)
    assert both.accounts[0]["losses"] == pytest.approx(alone.losses, rel=1e-4)
