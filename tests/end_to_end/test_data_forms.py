"""What the features of a dataset file do to a training, one by one and all together.

`test_dataset_forms.py` shows that the ways to name pictures agree; here masks, weights, held-out pictures, preserved
outputs and augmentation reach the loop as they should, and workers and processes change nothing of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bad_corpus
import numpy as np
import pytest
import toml
import torch
from PIL import Image
from safetensors.torch import load_file

from library.records import Size

FAST = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
FROZEN = ("--learning_rate=1e-12", "--optimizer_args", "weight_decay=0")  # losses of weights that stay as they are
EPOCH = "--max_train_epochs=1"
NO_DECAY = ("--optimizer_args", "weight_decay=0")
ALL_NAMES = tuple(path.name for path in sorted((Path(__file__).parents[2] / "examples/pictures").glob("*.[pj]*g")))


def furthest(weights: dict[str, torch.Tensor]) -> float:
    """The furthest that a weight of `up` is from zero, where all of them start."""
    return max(tensor.abs().max().item() for name, tensor in weights.items() if "lora_up" in name)


def losses_by_name(run: Any) -> dict[str, float]:
    """{picture: its loss} of a run with batches of one picture."""
    records = run.trainer.plan.records
    names = [records[batch.plan.items[0].record].path.name for batch in run.batches]
    return dict(zip(names, run.losses, strict=True))


# Weights and masks


def test_prior_loss_weight_is_the_factor_on_regularisation_pictures_only(training):
    train, reg = training.pictures(["red_circle.png", "red_star.png"]), training.pictures(["red_square.png"], to="reg")
    subsets = [{"image_dir": str(train)}, {"image_dir": str(reg), "is_reg": True}]
    dataset = training.dataset_of({"subsets": subsets}, batch_size=1)
    losses = {
        weight: losses_by_name(training.run(dataset, EPOCH, *FAST, *FROZEN, f"--prior_loss_weight={weight}"))
        for weight in (1.0, 0.25, 0.0)
    }
    for name in ("red_circle.png", "red_star.png"):
        assert losses[0.25][name] == losses[0.0][name] == losses[1.0][name] > 0
    assert losses[0.25]["red_square.png"] == pytest.approx(0.25 * losses[1.0]["red_square.png"], rel=1e-5)
    assert losses[0.0]["red_square.png"] == 0


def masks_of(training: Any, left: int, right: int, to: str) -> str:
    """Masks of all square pictures, one value in each half."""
    folder = training.folder / to
    folder.mkdir()
    pixels = np.full((64, 64), left, np.uint8)
    pixels[:, 32:] = right
    for name in ("red_circle.png", "red_star.png"):
        Image.fromarray(pixels).save(folder / name)
    return str(folder)


def test_masks_share_the_loss_out(training):
    pictures = training.pictures(["red_circle.png", "red_star.png"])
    sides = {"all": (255, 255), "left": (255, 0), "right": (0, 255), "half": (51, 51)}
    losses = {
        name: training.run(
            training.dataset(pictures, conditioning_data_dir=masks_of(training, *side, to=name)),
            *(EPOCH, *FAST, *FROZEN, "--masked_loss"),
        ).losses[0]
        for name, side in sides.items()
    }
    assert losses["left"] > 0 and losses["right"] > 0
    assert losses["left"] + losses["right"] == pytest.approx(losses["all"], rel=1e-5)
    assert losses["half"] == pytest.approx(0.2 * losses["all"], rel=1e-3)


def test_black_masks_leave_the_weights_alone(training):
    pictures = training.pictures(["red_circle.png", "red_star.png"])
    dataset = training.dataset(pictures, conditioning_data_dir=masks_of(training, 0, 0, to="masks"))
    run = training.run(dataset, "--max_train_steps=3", *FAST, *NO_DECAY, "--masked_loss")
    assert run.losses == [0.0] * 3
    assert furthest(run.weights) == 0
    assert "masks that are black all over, so that nothing is learned: 2 (red_circle.png, red_star.png)" in run.log


@pytest.mark.parametrize("caches", [(), ("--cache_latents",)], ids=["live", "cached"])
def test_transparency_masks_as_a_mask_file_does(caches, training):
    opaque, clear = training.pictures(["red_circle.png", "red_star.png"]), training.folder / "clear" / "pictures"
    clear.mkdir(parents=True)  # of one name, as draws are keyed by it
    for path in opaque.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGBA")).copy()
        pixels[:, 32:] = (255, 255, 255, 0)
        Image.fromarray(pixels).save(clear / path.name)
        Image.fromarray(pixels[..., :3]).save(path)
        shutil.copy(path.with_suffix(".txt"), clear)
    by_file = training.dataset(opaque, conditioning_data_dir=masks_of(training, 255, 0, to="masks"))
    by_alpha = training.dataset(clear, alpha_mask=True)
    runs = [training.run(by_file, EPOCH, *caches, "--masked_loss"), training.run(by_alpha, EPOCH, *caches)]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6) and runs[0].losses[0] > 0
    assert torch.equal(runs[0].batches[0].masks, runs[1].batches[0].masks)


def test_mirrored_pictures_have_mirrored_masks_cached_and_live(training):
    pictures = training.pictures(["red_circle.png", "red_star.png"])
    masks = masks_of(training, 255, 0, to="masks")
    dataset = training.dataset(pictures, conditioning_data_dir=masks, flip_aug=True, num_repeats=4)
    live = training.compare(dataset, EPOCH, "--masked_loss")
    cached = training.compare(dataset, EPOCH, "--masked_loss", "--cache_latents")
    seen = {tuple(mask[0, 0].tolist()) for batch in live.batches for mask in batch.masks}
    assert seen == {(1,) * 4 + (0,) * 4, (0,) * 4 + (1,) * 4}
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)


# Validation


def test_validation_split_keeps_pictures_out_of_training_for_good(training):
    folder = training.pictures(ALL_NAMES[:11])
    run = training.run(training.dataset(folder, validation_split=0.4, validation_seed=3), "--max_train_epochs=2", *FAST)
    plan = run.trainer.plan
    kept = {record.path.name for record in plan.validation_records}
    trained = {record.path.name for record in plan.training_records}
    assert 0 < len(kept) < 11 and not kept & trained and kept | trained == set(ALL_NAMES[:11])
    assert set(run.seen) == trained and len(run.seen) == 2 * len(trained)
    for file in (ALL_NAMES[11], f"{Path(ALL_NAMES[11]).stem}.txt"):
        shutil.copy(training.examples / file, folder)
    more = training.run(training.dataset(folder, validation_split=0.4, validation_seed=3), EPOCH, *FAST).trainer.plan
    assert {record.path.name for record in more.validation_records} - {ALL_NAMES[11]} == kept
    other = training.run(training.dataset(folder, validation_split=0.4, validation_seed=4), EPOCH, *FAST).trainer.plan
    assert {record.path.name for record in other.validation_records} - {ALL_NAMES[11]} != kept


def test_a_picture_kept_at_one_resolution_is_trained_at_none(training):
    folder = training.pictures(ALL_NAMES)
    subsets = [{"image_dir": str(folder)}]
    dataset = training.dataset_of(
        {"subsets": subsets, "validation_split": 0.4}, {"subsets": subsets, "resolution": 96}, batch_size=4
    )
    run = training.run(dataset, EPOCH, *FAST)
    kept = {record.path.name for record in run.trainer.plan.validation_records}
    assert kept and not kept & set(run.seen)
    assert len(run.seen) == 2 * (len(ALL_NAMES) - len(kept))


# Preserved outputs


PRESERVE = {"custom_attributes": {"diff_output_preservation": True}}


def test_preserved_pictures_have_no_loss_where_the_network_does_nothing(training):
    folder = training.pictures(["red_circle.png", "red_star.png"])
    run = training.run(training.dataset(folder, **PRESERVE), "--max_train_steps=3", *FAST, *NO_DECAY)
    assert all(batch.preserves_output.all() for batch in run.batches)
    assert run.losses == [0.0] * 3
    assert furthest(run.weights) == 0


def test_only_the_pictures_that_ask_for_it_are_preserved(training):
    folders = [training.pictures([name], to=name) for name in ("red_circle.png", "red_star.png")]
    subsets = [{"image_dir": str(folders[0])}, {"image_dir": str(folders[1]), **PRESERVE}]
    run = training.run(training.dataset_of({"subsets": subsets}, batch_size=1), EPOCH, *FAST, *FROZEN)
    plain = training.run(training.dataset(folders[0], batch_size=1), EPOCH, *FAST, *FROZEN)
    losses = losses_by_name(run)
    assert losses["red_circle.png"] == pytest.approx(losses_by_name(plain)["red_circle.png"], rel=1e-5)
    assert losses["red_star.png"] == pytest.approx(0, abs=1e-9)


def test_a_network_that_changes_preserved_pictures_is_led_back(training):
    folder = training.pictures(["red_circle.png", "red_star.png"])
    away = training.run(training.dataset(folder), "--max_train_steps=8", *FAST, "--learning_rate=1e-2")
    flags = (f"--network_weights={away.file}", "--learning_rate=2e-3", "--max_train_steps=30")
    back = training.run(training.dataset(folder, **PRESERVE), *flags, *FAST, *NO_DECAY)
    assert back.losses[0] > 0
    assert sum(back.losses[-5:]) < 0.5 * sum(back.losses[:5])


def test_preserved_outputs_with_text_encoders_that_train(training):
    folder = training.pictures(["red_circle.png", "red_star.png"])
    run = training.run(training.dataset(folder, **PRESERVE), "--max_train_steps=2", "--cache_latents", *NO_DECAY)
    assert any(name.startswith("lora_te1_") for name in run.weights)
    assert run.losses == [0.0] * 2 and furthest(run.weights) == 0


# Files and augmentation


def test_json_dataset_files_train_as_toml_ones(training):
    dataset = training.dataset(training.pictures(), flip_aug=True, num_repeats=2)
    file = training.folder / "dataset.json"
    file.write_text(json.dumps(toml.loads(dataset.read_text(encoding="utf-8"))), encoding="utf-8")
    runs = [training.run(path, EPOCH, *FAST) for path in (dataset, file)]
    assert runs[0].losses == runs[1].losses and len(runs[0].losses) == 4


def test_sub_folders_are_trained_with_recursive(training):
    folder = training.pictures(["red_circle.png"])
    training.pictures(["red_star.png", "red_circle.png"], to="pictures/deep")
    (folder / "deep" / ".hidden").mkdir()
    shutil.copy(folder / "red_circle.png", folder / "deep" / ".hidden" / "never.png")
    run = training.run(training.dataset(folder, recursive=True), EPOCH, *FAST)
    assert run.seen == ["red_circle.png", "red_circle.png", "red_star.png"]
    assert len({sample for batch in run.batches for sample in batch.sample_ids}) == 3


def images_of(run: Any) -> torch.Tensor:
    """All decoded pictures of a run, in the order of training. Shape [N, 3, H, W]."""
    return torch.cat([batch.images for batch in run.batches])


def test_colours_change_slightly_for_some_and_masks_not_at_all(training):
    folder = training.folder / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(bad_corpus.encoded(bad_corpus.quarters()))
    dataset = training.dataset(folder, color_aug=True, num_repeats=40, batch_size=8, alpha_mask=True, class_tokens="x")
    run = training.run(dataset, EPOCH)
    exact = torch.from_numpy(np.array(bad_corpus.quarters())).permute(2, 0, 1) / 127.5 - 1
    changes = (images_of(run) - exact).abs().flatten(1).amax(1)
    assert 3 <= int((changes > 0.01).sum()) <= 25  # a third of 40
    assert float(changes.max()) < 0.7
    assert len({round(float(change), 4) for change in changes}) > 3
    assert all((batch.masks == 1).all() for batch in run.batches)


def test_faces_named_by_the_file_are_in_every_crop(training):
    folder = training.folder / "pictures"
    folder.mkdir()
    pixels = np.zeros((256, 320, 3), np.uint8)
    pixels[76:124, 216:264] = (250, 250, 250)  # a face of 48 x 48 around (240, 100)
    Image.fromarray(pixels).save(folder / "anna_240_100_48_48.png")
    keys = {"enable_bucket": False, "face_crop_aug_range": [1.5, 3.0], "num_repeats": 20, "class_tokens": "x"}
    run = training.run(training.dataset(folder, batch_size=4, **keys), EPOCH)
    images = images_of(run)
    assert images.shape == (20, 3, 64, 64)
    shares = (images > 0).float().mean((1, 2, 3)).sqrt()  # of the side that the face takes
    assert 0.28 < float(shares.min()) < float(shares.max()) < 0.72 and float(shares.std()) > 0.02
    bright = images[:, 0] > 0
    for axis in (1, 2):  # the whole face, its middle where the crop's is but for a 20th of its size and a pixel
        seen = [torch.nonzero(line).flatten() for line in bright.any(3 - axis)]
        middles = torch.tensor([(int(places[0]) + int(places[-1]) + 1) / 2 for places in seen])
        sides = torch.tensor([float(places[-1] - places[0] + 1) for places in seen])
        assert bool(((middles - 32).abs() <= sides / 20 + 1.5).all())
        assert len(set(middles.tolist())) > 3


def test_random_crops_differ_between_epochs_and_pictures(training):
    folder = training.folder / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(bad_corpus.encoded(bad_corpus.noise(128, 64)))
    dataset = training.dataset(folder, random_crop=True, class_tokens="x", enable_bucket=False)
    run = training.run(dataset, "--max_train_epochs=5")
    images = images_of(run)
    assert images.shape[1:] == (3, 64, 64)
    assert len({tuple(image[0, 0].tolist()) for image in images}) > 7  # of ten


# All of it


@pytest.fixture
def everything(training) -> Path:
    """A dataset file that uses every feature: 6 subsets, 2 resolutions, masks, weights, held-out pictures, variants."""
    folder = training.folder
    plain = training.pictures(ALL_NAMES[:4], to="plain")
    training.pictures(ALL_NAMES[4:6], to="plain/deep")
    reg = training.pictures(ALL_NAMES[6:8], to="reg")
    masked = training.pictures(["red_circle.png", "red_star.png"], to="masked")
    masks = masks_of(training, 255, 60, to="masks")
    clear = training.folder / "clear"
    bad_corpus.write(clear, "rgba_hidden.png", "exif6.jpg")
    listed = training.pictures(ALL_NAMES[8:11], to="listed")
    table = {name: {"caption": "a shape", "tags": "x, y, {red|blue}"} for name in ALL_NAMES[8:11]}
    (folder / "listed.json").write_text(json.dumps(table), encoding="utf-8")
    preserved = training.pictures(ALL_NAMES[11:], to="preserved")
    subsets = [
        {"image_dir": str(plain), "recursive": True, "num_repeats": 2, "validation_split": 0.3, "keep_tokens": 1},
        {"image_dir": str(reg), "is_reg": True, "class_tokens": "shape"},
        {"image_dir": str(masked), "conditioning_data_dir": str(masks), "caption_dropout_rate": 0.3},
        {"image_dir": str(clear), "alpha_mask": True, "class_tokens": "a b, c, d", "background": "#808080"},
        {"image_dir": str(listed), "metadata_file": str(folder / "listed.json"), "enable_wildcard": True},
        {"image_dir": str(preserved), **PRESERVE, "caption_prefix": "photo of"},
    ]
    again = [{"image_dir": str(masked), "class_tokens": "y", "resize_interpolation": "bicubic"}]
    return training.dataset_of(
        {"subsets": subsets, "batch_size": 2},
        {"subsets": again, "resolution": 96, "batch_size": 1},
        **{"shuffle_caption": True, "caption_tag_dropout_rate": 0.2, "flip_aug": True},
    )


TEXT_CACHE = ("--cache_text_encoder_outputs_to_disk", "--text_encoder_cache_variants=4")
CACHES = ("--cache_latents_to_disk", *TEXT_CACHE)
TOGETHER = ("--max_train_epochs=2", "--masked_loss", "--prior_loss_weight=0.5", "--network_dropout=0.1")


def test_everything_together_changes_no_byte_with_the_number_of_workers(training, everything):
    files, seen = [], []
    for workers in (0, 1, 2):
        run = training.run(everything, *TOGETHER, *CACHES, f"--max_data_loader_n_workers={workers}")
        files.append(run.file.read_bytes())
        seen.append(run.seen)
    assert files[0] == files[1] == files[2] and seen[0] == seen[1] == seen[2]
    plan = run.trainer.plan
    assert plan.validation_records and {record.is_reg for record in plan.records} == {True, False}
    assert {batch.plan.size for batch in run.batches} >= {Size(64, 64), Size(96, 96)}
    assert any(batch.preserves_output is not None for batch in run.batches)
    assert "" in {caption for batch in run.batches for caption in batch.captions}
    repeats = {record.key: 2 * record.repeats for record in plan.training_records}
    samples = [sample for batch in run.batches for sample in batch.sample_ids]
    assert len(samples) == sum(repeats.values())


def test_everything_live_changes_no_byte_with_the_number_of_workers(training, everything):
    text = everything.read_text(encoding="utf-8")
    everything.write_text(text.replace("flip_aug = true", "flip_aug = true\nrandom_crop = true\ncolor_aug = true"))
    files = []
    for workers in (0, 2):
        run = training.run(everything, *TOGETHER, f"--max_data_loader_n_workers={workers}")
        files.append(run.file.read_bytes())
    assert files[0] == files[1]


def test_everything_in_two_processes_trains_what_one_trains_with_accumulation_2(training, everything, launch_pair):
    flags = (*TOGETHER, "--optimizer_args", "eps=1e-4", "--network_train_unet_only")
    one = training.run(everything, *flags, *CACHES, "--gradient_accumulation_steps=2")
    shutil.rmtree(training.folder / "plain" / "text_encoder_cache")
    arguments = training.arguments(everything, *flags, *CACHES, "--max_data_loader_n_workers=1")
    two = launch_pair([a for a in arguments if a != "--max_data_loader_n_workers=0"])
    assert two.code == 0, two.output
    first, second = two.accounts
    assert first["losses"] == second["losses"] == pytest.approx(one.losses, rel=1e-4)
    torch.testing.assert_close(load_file(first["saved"][0]), one.weights, rtol=0, atol=1e-5)
    made = first["entries"] + second["entries"]
    assert made and len(made) == len(set(made))
