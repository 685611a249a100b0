"""Recipes that users of SDXL copy: a configuration file for Adafactor, a character without captions, one with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toml

Make = Callable[..., Any]

ADAFACTOR = {
    "optimizer_type": "adafactor",
    "optimizer_args": ["scale_parameter=False", "relative_step=False", "warmup_init=False"],
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 100,
    "learning_rate": 4e-7,
}


def without(arguments: list[str], *flags: str) -> list[str]:
    return [argument for argument in arguments if argument.partition("=")[0] not in flags]


def test_the_adafactor_recipe_runs_as_a_configuration_file(training_of: Make):
    train = training_of("sdxl_train", "sdxl")
    path = train.folder / "recipe.toml"
    path.write_text(toml.dumps(ADAFACTOR), encoding="utf-8")
    arguments = without(train.arguments(train.dataset(train.pictures())), "--learning_rate")
    run = train.run_arguments([*arguments, f"--config_file={path}", "--max_train_steps=2"])
    optimizer = run.trainer.options.optimizer
    assert optimizer.optimizer_name == "adafactor" and optimizer.learning_rate == 4e-7
    assert run.trainer.schedule.get_last_lr()[0] == pytest.approx(4e-7 * 2 / 100)


def many(train: Any, number: int) -> Path:
    folder = train.folder / "character"
    folder.mkdir()
    for index in range(number):
        shutil.copy(train.examples / "red_circle.png", folder / f"{index:02}.png")
    return folder


def test_a_character_without_captions_makes_135_steps_an_epoch(training_of: Make):
    train = training_of("sdxl_train_network", "sdxl")
    subset = {"image_dir": str(many(train, 27)), "class_tokens": "ohwx person", "num_repeats": 20}
    dataset = train.dataset_of({"subsets": [subset]}, batch_size=4)
    run = train.run(dataset, "--network_train_unet_only", "--cache_text_encoder_outputs", "--max_train_steps=1")
    assert any("27 images x 20 repeats = 540 samples" in line and "135 steps an epoch" in line for line in run.log)
    assert {caption for batch in run.batches for caption in batch.captions} == {"ohwx person"}


def test_a_character_with_captions_a_trigger_word_and_mirrored_pictures(training_of: Make):
    train = training_of("train_network", "sd1")
    dataset = train.dataset(
        train.pictures(), flip_aug=True, shuffle_caption=True, keep_tokens=1, caption_prefix="ohwx, "
    )
    rates = ("--unet_lr=0.0003", "--text_encoder_lr=2e-4")
    run = train.run(dataset, "--max_train_steps=4", "--clip_skip=2", "--max_token_length=150", *rates)
    assert any("AdamW at 0.0003," in line for line in run.log)  # what trains, not --learning_rate
    captions = [caption for batch in run.batches for caption in batch.captions]
    assert all(caption.startswith("ohwx, ") for caption in captions)
    assert {view.is_flipped for batch in run.batches for view in batch.views} == {True, False}
