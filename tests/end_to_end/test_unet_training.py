"""SD 1.x, SD 2.x and SDXL through their scripts: what trains, what is saved, the same however it is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from library.errors import OptionError
from library.tensorfile import read_header, read_tensors

Make = Callable[..., Any]

TWO_STEPS = "--max_train_steps=2"
CACHED = ("--cache_latents", "--cache_text_encoder_outputs")


def of(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(read_header(path))


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """First parts of the names of what is another."""
    names = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    return {".".join(name.split(".")[:4]) if name.startswith("cond") else name.split(".")[0] for name in names}


def test_a_lora_of_sd1_trains_u_net_and_text_encoder(training_of: Make):
    train = training_of("train_network", "sd1")
    run = train.run(train.dataset(train.pictures()), TWO_STEPS)
    prefixes = {"_".join(name.split("_")[:2]) for name in run.weights}
    assert prefixes == {"lora_te", "lora_unet"}
    ups = [tensor for name, tensor in run.weights.items() if name.endswith("lora_up.weight")]
    assert all(tensor.any() for tensor in ups)


def test_cached_sdxl_is_live_sdxl(training_of: Make):
    train = training_of("sdxl_train_network", "sdxl")
    dataset = train.dataset(train.pictures(), flip_aug=True)
    flags = ("--network_train_unet_only", TWO_STEPS)
    live, cached = train.run(dataset, *flags), train.run(dataset, *flags, *CACHED)
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)
    assert live.weights.keys() == cached.weights.keys()
    assert all(name.startswith("lora_unet_input_blocks") for name in sorted(live.weights)[:3])


def test_the_u_net_is_told_the_true_crop_or_that_of_another_trainer(training_of: Make):
    train = training_of("sdxl_train_network", "sdxl")
    dataset = train.dataset(train.pictures(("blue_triangle.png",)), resolution=[64, 32], enable_bucket=False)
    flags = ("--network_train_unet_only", *CACHED, "--max_train_steps=1")
    true, compatible = train.run(dataset, *flags), train.run(dataset, *flags, "--sdxl_crop_compat")
    assert true.batches[0].views[0].crop.top == 16
    assert true.losses != compatible.losses


def test_a_resumed_run_of_sdxl_is_the_unbroken_one(training_of: Make):
    train = training_of("sdxl_train_network", "sdxl")
    dataset = train.dataset(train.pictures())
    flags = ("--network_train_unet_only", *CACHED)
    whole = train.run(dataset, *flags, "--max_train_steps=3", "--save_every_n_steps=2", "--save_state")
    state = next(whole.file.parent.glob("*step00000002-state"))
    second = train.run(dataset, *flags, "--max_train_steps=3", f"--resume={state}")
    assert second.losses == whole.losses
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in second.weights.items())


def test_whole_sdxl_trains_by_parts_with_rates_of_their_own(training_of: Make):
    train = training_of("sdxl_train", "sdxl")
    rates = ["0"] * 23
    rates[0] = rates[22] = "1e-3"
    flags = (f"--block_lr={','.join(rates)}", "--optimizer_type=Adafactor", "--fused_backward_pass", TWO_STEPS)
    flags += ("--optimizer_args", "relative_step=False", "scale_parameter=False")
    run = train.run(train.dataset(train.pictures()), *flags)
    before, after = of(train.model), run.weights
    names = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    parts = {name.removeprefix("model.diffusion_model.").split(".")[0] for name in names}
    assert parts == {"time_embed", "label_emb", "out"}
    with pytest.raises(OptionError, match="takes 23 rates for this model"):
        train.run(train.dataset(train.folder / "pictures"), "--block_lr=1e-3,1e-3")


def test_encoders_of_whole_sdxl_train_at_their_rates(training_of: Make):
    train = training_of("sdxl_train", "sdxl")
    flags = (
        "--train_text_encoder",
        "--learning_rate_te1=0",
        "--learning_rate_te2=1e-3",
        "--learning_rate=0",
        TWO_STEPS,
    )
    run = train.run(train.dataset(train.pictures()), *flags)
    before, after = of(train.model), run.weights
    names = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert names and all(name.startswith("conditioner.embedders.1.") for name in names)


def test_the_text_encoder_of_train_db_stops_when_it_is_told_to(training_of: Make):
    train = training_of("train_db", "sd1")
    dataset = train.dataset(train.pictures())
    flags = ("--stop_text_encoder_training=1", "--save_every_n_steps=1", "--max_train_steps=3")
    run = train.run(dataset, *flags)
    first, second, *_, last = (of(path) for path in run.trainer.saved_files)
    encoder = [name for name in last if "cond_stage_model." in name]
    unet = "model.diffusion_model.input_blocks.0.0.weight"
    assert any(not torch.equal(first[name], of(train.model)[name]) for name in encoder if name in of(train.model))
    assert all(torch.equal(first[name], last[name]) for name in encoder)
    assert not torch.equal(first[unet], last[unet]) and not torch.equal(second[unet], last[unet])


def test_train_db_keeps_the_class_by_regularisation_pictures(training_of: Make):
    train = training_of("train_db", "sd1")
    for folder in ("mine/2_zorp star", "class/1_star"):
        (train.folder / folder).parent.mkdir(exist_ok=True)
        shutil.copytree(train.pictures(to="some"), train.folder / folder)
        shutil.rmtree(train.folder / "some")
    arguments = train.arguments(Path("none"), "--stop_text_encoder_training=-1", "--max_train_steps=1")
    folders = [f"--train_data_dir={train.folder / 'mine'}", f"--reg_data_dir={train.folder / 'class'}"]
    places = [*folders, "--resolution=64", "--train_batch_size=4", "--prior_loss_weight=0.5"]
    run = train.run_arguments([*(each for each in arguments if "dataset_config" not in each), *places])
    weights = {weight for batch in run.batches for weight in batch.loss_weights.tolist()}
    assert weights <= {0.5, 1.0}
    assert {record.loss_weight for record in run.trainer.plan.records} == {0.5, 1.0}


def test_whole_sd2_predicts_the_velocity(training_of: Make):
    train = training_of("fine_tune", "sd2")
    flags = ("--v_parameterization", "--zero_terminal_snr", "--min_snr_gamma=5", "--train_text_encoder", TWO_STEPS)
    run = train.run(train.dataset(train.pictures()), *flags)
    before, after = of(train.model), run.weights
    kept = {name for name in before if name in after and torch.equal(before[name], after[name])}
    assert all(value == value and value < 100 for value in run.losses)
    assert any(name.startswith("cond_stage_model.model.transformer.resblocks.0.") for name in before.keys() - kept)
    assert all(name in kept for name in before if name.startswith("first_stage_model."))
