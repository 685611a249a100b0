"""The same seed is the same training, today and with the next version."""

import json
import shlex
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parent.parent / "golden" / "data"
CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")


def test_losses_are_the_stored_ones(training, tmp_path, monkeypatch):
    """sd3_training_losses.json: how it was made stands in it."""
    stored = json.loads((DATA / "sd3_training_losses.json").read_text(encoding="utf-8"))
    monkeypatch.chdir(DATA.parent.parent.parent)
    words = shlex.split(stored["command"])
    places = {"model": training.model.as_posix(), "output": (tmp_path / "out").as_posix()}
    run = training.run_arguments([word.format(**places) for word in words[2:]])
    assert run.losses == pytest.approx(stored["losses"], rel=1e-4)


@pytest.mark.parametrize("flags", [(), CACHED], ids=["live", "cached"])
def test_same_seed_gives_the_same_losses_and_bytes_another_seed_others(training, flags):
    dataset = training.dataset(training.pictures(), shuffle_caption=not flags)
    flags = ("--max_train_steps=3", "--network_dropout=0.1", *flags)
    first, again = training.run(dataset, *flags), training.run(dataset, *flags)
    other = training.run(dataset, *flags, "--seed=6")
    assert again.losses == first.losses
    assert again.file.read_bytes() == first.file.read_bytes()
    assert other.losses != pytest.approx(first.losses, rel=1e-3)
    assert other.file.read_bytes() != first.file.read_bytes()


def test_without_a_seed_every_run_has_another_which_the_log_tells(training):
    dataset = training.dataset(training.pictures())
    runs = []
    for _ in range(2):
        arguments = [a for a in training.arguments(dataset, "--max_train_steps=1") if a != "--seed=5"]
        runs.append(training.run_arguments([*arguments, "--network_train_unet_only"]))
    assert runs[0].losses != runs[1].losses
    for run in runs:
        assert any(line.startswith(f"seed {run.trainer.seed}, ") for line in run.log)
