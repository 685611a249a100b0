"""Validation, averages, samples, curves and trackers: they see the training and do not touch it."""

import csv
import re

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
NAME = "--output_name=x"
STILL = ("--optimizer_type=SGD", "--learning_rate=1e-30", "--max_train_steps=1")  # weights stay as they are


@pytest.fixture
def dataset(training):
    """Some pictures are kept for validation."""
    names = [path.name for path in sorted(training.examples.iterdir()) if path.suffix != ".txt"]
    return training.dataset(training.pictures(names), validation_split=0.3, validation_seed=3)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red star --w 64 --h 64 --d 1 --s 2 --l 3\n", encoding="utf-8")
    return f"--sample_prompts={path}"


@pytest.mark.parametrize("flags", [(), CACHED], ids=["live", "cached"])
def test_nothing_that_watches_changes_a_bit_of_the_training(training, dataset, prompts, tmp_path, flags):
    flags = ("--max_train_steps=5", "--network_dropout=0.2", "--validate_every_n_epochs=1000", NAME, *flags)
    plain = training.run(dataset, *flags)
    assert [step for step, _ in plain.trainer.watch.validations] == [5]  # the last file
    watched = training.run(
        dataset,
        *(flag for flag in flags if not flag.startswith("--validate")),
        *("--validate_every_n_steps=1", "--ema_decay=0.9", prompts, "--sample_every_n_steps=2", "--sample_at_first"),
        *("--save_every_n_steps=2", "--save_state", f"--logging_dir={tmp_path / 'logs'}"),
    )
    assert watched.losses == plain.losses
    assert watched.file.read_bytes() == plain.file.read_bytes()
    assert [step for step, _ in watched.trainer.watch.validations] == [1, 2, 3, 4, 5]


def test_validation_is_after_every_epoch_and_before_every_save_unless_said_otherwise(training, dataset):
    steps = training.unet_only(dataset, "--max_train_steps=1").trainer.plan.steps.steps_per_epoch
    assert steps > 2
    flags = (f"--max_train_steps={2 * steps}", "--save_every_n_steps=2", NAME)
    run = training.unet_only(dataset, *flags)
    wanted = sorted({*range(2, 2 * steps + 1, 2), steps, 2 * steps})
    assert [step for step, _ in run.trainer.watch.validations] == wanted
    rare = training.unet_only(dataset, f"--max_train_steps={2 * steps}", "--validate_every_n_epochs=2")
    assert [step for step, _ in rare.trainer.watch.validations] == [2 * steps]
    for_steps = training.unet_only(dataset, f"--max_train_steps={2 * steps}", "--validate_every_n_steps=2")
    assert [step for step, _ in for_steps.trainer.watch.validations] == list(range(2, 2 * steps + 1, 2))


def validation_loss(run):
    ((_, loss),) = run.trainer.watch.validations
    return loss


def test_validation_loss_is_the_same_in_every_memory_mode(training, dataset):
    flags = (*STILL, "--validate_every_n_steps=1", "--network_train_unet_only")
    live = validation_loss(training.run(dataset, *flags))
    modes = [
        ("--cache_latents", "--cache_text_encoder_outputs"),
        ("--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk", "--max_data_loader_n_workers=2"),
        ("--gradient_checkpointing",),
        ("--ema_decay=0.9", "--cache_latents"),
        ("--network_dropout=0.5", "--t5_dropout_rate=1"),
        ("--seed=99",),
    ]
    for mode in modes:
        assert validation_loss(training.run(dataset, *flags, *mode)) == pytest.approx(live, rel=1e-5), mode
    assert validation_loss(training.run(dataset, *flags, "--validation_seed=4")) != pytest.approx(live, rel=1e-3)


def test_validation_loss_is_the_same_number_for_any_number_of_processes(training, dataset, launch_pair):
    """Two processes, three batches: not dealt evenly."""
    flags = (*STILL, *CACHED, "--validate_every_n_steps=1", NAME)
    one = training.run(dataset, *flags)
    assert len(one.trainer.validation.batches) >= 2
    words = training.arguments(dataset, *flags)
    two = launch_pair(words)
    assert two.code == 0, two.output
    found = re.findall(r"validation loss at step 1: (\d\.\d+)", two.output)
    assert found == [f"{validation_loss(one):.5f}"]


def test_validation_falls_while_training_learns_and_is_limited_by_max_validation_steps(training, dataset):
    flags = ("--max_train_steps=30", "--learning_rate=5e-3", "--network_dim=16", "--network_alpha=16")
    run = training.unet_only(dataset, *flags, "--validate_every_n_steps=15")
    (_, first), (_, last) = run.trainer.watch.validations
    assert last < first
    few = training.unet_only(dataset, "--max_train_steps=1", "--max_validation_steps=1", "--validate_every_n_steps=1")
    assert len(few.trainer.validation.batches) == 1 < len(run.trainer.validation.batches)


def test_average_lies_beside_each_file_and_moves_more_slowly(training, dataset):
    flags = ("--max_train_steps=4", "--save_every_n_steps=2", NAME, "--ema_decay=0.99", "--learning_rate=1e-2")
    run = training.unet_only(dataset, *flags)
    folder = run.file.parent
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [
        "x-ema.safetensors",
        "x-step00000002-ema.safetensors",
        "x-step00000002.safetensors",
        "x-step00000004-ema.safetensors",
        "x-step00000004.safetensors",
        "x.safetensors",
    ]
    average, weights = load_file(folder / "x-ema.safetensors"), run.weights
    up = [name for name in weights if name.endswith("lora_up.weight")]
    assert all(average[name].norm() < weights[name].norm() for name in up)
    assert all(average[name].abs().sum() > 0 for name in up)
    assert any("lowest validation loss" in line and "-ema.safetensors" in line for line in run.log)


def test_average_goes_on_exactly_after_a_resume(training, dataset):
    flags = ("--max_train_steps=4", "--save_every_n_steps=2", NAME, "--ema_decay=0.9", "--save_state")
    whole = training.unet_only(dataset, *flags).file.parent
    state = f"--resume={whole / 'x-step00000002-state'}"
    rest = training.unet_only(dataset, *flags, state).file.parent
    for name in ("x.safetensors", "x-ema.safetensors", "x_curves.png", "x_loss_by_image.csv"):
        assert (rest / name).read_bytes() == (whole / name).read_bytes(), name


def test_schedule_free_weights_that_are_saved_are_those_to_use_and_training_goes_on_from_its_own(training, dataset):
    pytest.importorskip("schedulefree")
    flags = ("--max_train_steps=6", "--optimizer_type=AdamWScheduleFree", "--learning_rate=1e-2", NAME)
    plain = training.unet_only(dataset, *flags, "--validate_every_n_epochs=1000")
    saved = training.unet_only(dataset, *flags, "--save_every_n_steps=1", "--save_state")
    assert saved.file.read_bytes() == plain.file.read_bytes() and saved.losses == plain.losses
    training_weights = saved.trainer.trained_state()
    name = next(name for name in saved.weights if name.endswith("lora_up.weight"))
    assert not torch.equal(saved.weights[name], training_weights[name])
    rest = training.unet_only(dataset, *flags, f"--resume={saved.file.parent / 'x-step00000003-state'}")
    assert rest.file.read_bytes() == plain.file.read_bytes()


def test_curves_table_and_summary_are_written_beside_the_file(training, dataset, plain_curves):
    plain_curves.undo()
    run = training.unet_only(dataset, "--max_train_epochs=2", NAME, "--save_every_n_epochs=1")
    folder = run.file.parent
    with Image.open(folder / "x_curves.png") as picture:
        assert picture.size == (1200, 900)
    with open(folder / "x_loss_by_image.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    trained = {record.key for record in run.trainer.plan.training_records}
    assert {row["picture"] for row in rows} == trained and {row["epoch"] for row in rows} == {"1", "2"}
    mean = sum(float(row["loss"]) * int(row["seen"]) for row in rows) / sum(int(row["seen"]) for row in rows)
    assert mean == pytest.approx(sum(_sample_losses(run)) / len(_sample_losses(run)), rel=1e-4)
    best = min(run.trainer.watch.validations, key=lambda point: point[1])
    (line,) = [line for line in run.log if line.startswith("lowest validation loss")]
    assert line.startswith(f"lowest validation loss {best[1]:.4f} at step {best[0]}: {folder}")
    assert any(line.startswith("hardest pictures") for line in run.log)


def _sample_losses(run):
    return [row.loss for row in run.trainer.watch.records.pictures() for _ in range(row.seen)]


def test_tensorboard_gets_losses_rates_norms_validation_and_pictures(training, dataset, prompts, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = (
        "--max_train_steps=4",
        "--validate_every_n_steps=2",
        prompts,
        "--sample_every_n_steps=4",
        "--lr_scheduler=linear",
    )
    run = training.unet_only(dataset, *flags, f"--logging_dir={tmp_path / 'logs'}", "--log_prefix=mine_")
    (folder,) = (tmp_path / "logs").glob("mine_*")
    events = EventAccumulator(str(next(folder.rglob("events*")).parent)).Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert [value for _, value in scalars["loss/current"]] == pytest.approx(run.losses)
    assert [value for _, value in scalars["lr/unet"]] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert {"loss/average", "norm/avg_grad_norm"} <= set(scalars)
    assert [step for step, _ in next(v for k, v in scalars.items() if k.startswith("loss/validation"))]
    assert events.Tags()["images"]


def test_a_validation_picture_that_vanishes_costs_the_validation_and_nothing_else(training, dataset):
    flags = ("--max_train_steps=6", "--network_train_unet_only", "--cache_text_encoder_outputs")
    plain = training.run(dataset, *flags)

    def remove():
        for record in plain.trainer.plan.validation_records[:1]:
            record.path.rename(record.path.with_suffix(".gone"))

    words = training.arguments(dataset, *flags)
    run = training.run_arguments(words, after={"announce": remove})
    assert run.file.read_bytes() == plain.file.read_bytes() and run.trainer.watch.validations == []
    assert [line for line in run.log if line.startswith("no validation loss at step ") and "training goes on" in line]


def test_the_header_of_an_average_says_what_it_is_and_pickles_have_none(training, dataset):
    words = [
        word for word in training.arguments(dataset, *CACHED, NAME, "--max_train_steps=1") if word != "--no_metadata"
    ]
    run = training.run_arguments([*words, "--ema_decay=0.9"])
    headers = {}
    for name in ("x.safetensors", "x-ema.safetensors"):
        with safe_open(run.file.parent / name, "pt") as file:
            headers[name] = file.metadata()
    assert headers["x-ema.safetensors"]["ss_ema_weights"] == "True"
    assert "ss_ema_weights" not in headers["x.safetensors"]
    words = [
        word for word in training.arguments(dataset, *CACHED, NAME, "--max_train_steps=1") if word != "--no_metadata"
    ]
    pickled = training.run_arguments([*words, "--save_model_as=ckpt", "--metadata_title=mine"])
    assert [line for line in pickled.log if line.startswith("--metadata_title without effect: the format ckpt has")]
