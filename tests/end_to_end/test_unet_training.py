"""SD 1.x, SD 2.x and SDXL through their scripts: what trains, what is saved, the same however it is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from library.errors import OptionError
from library.families.sdxl.conditioning import compat_sizes, true_sizes
from library.models.unet import UNet
from library.tensorfile import read_header, read_tensors
from tests.end_to_end.conftest import SQUARE

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
    untold = r"mid_block_.*attn1_to_[qk]"  # pictures of 64 pixels are one token there, which can only look at itself
    ups = {name: tensor for name, tensor in run.weights.items() if name.endswith("lora_up.weight")}
    assert {name for name, tensor in ups.items() if not tensor.any()} <= {
        name for name in ups if re.search(untold, name)
    }


def test_cached_sdxl_is_live_sdxl(training_of: Make):
    train = training_of("sdxl_train_network", "sdxl")
    pictures = train.pictures()
    (pictures / "red_star.txt").write_text("a " * 77, encoding="utf-8")
    dataset = train.dataset(pictures, flip_aug=True)
    flags = ("--network_train_unet_only", TWO_STEPS, "--network_args", "down_lr_weight=0.5", "loraplus_lr_ratio=2")
    live, cached = train.run(dataset, *flags), train.run(dataset, *flags, *CACHED)
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)
    assert all(any("--max_token_length 150 reads more" in line for line in run.log) for run in (live, cached))
    assert live.weights.keys() == cached.weights.keys()
    assert all(name.startswith("lora_unet_input_blocks") for name in sorted(live.weights)[:3])
    (line,) = (line for line in live.log if "numbers train" in line)
    assert line.count("unet_block") == 6 and line.endswith(" more groups)")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[list[float]]]:
    """What U-Nets are told of sizes, one entry for each call."""
    calls: list[list[list[float]]] = []
    forward = UNet.forward

    def listening(unet: UNet, *inputs: Any, **named: Any) -> Any:
        calls.append(named["added_cond_kwargs"]["time_ids"].tolist())
        return forward(unet, *inputs, **named)

    monkeypatch.setattr(UNet, "forward", listening)
    return calls


def test_the_u_net_is_told_the_true_crop_or_that_of_another_trainer(training_of: Make, told: Any):
    train = training_of("sdxl_train_network", "sdxl")
    dataset = train.dataset(
        train.pictures(), resolution=[32, 64], enable_bucket=False, random_crop=True, flip_aug=True, batch_size=4
    )
    prompts = train.folder / "prompts.txt"
    prompts.write_text("a red square --w 64 --h 96 --s 1 --l 3 --d 1", encoding="utf-8")
    flags = ("--network_train_unet_only", "--cache_text_encoder_outputs", "--max_train_steps=1")
    true = train.run(dataset, *flags, f"--sample_prompts={prompts}", "--sample_every_n_steps=1")
    (views,) = (batch.views for batch in true.batches)
    assert any(view.is_flipped and view.crop.left not in (0, 16, 32) for view in views)
    assert not all(view.is_flipped for view in views)
    assert told[0] == true_sizes(views).tolist()
    assert told[1:] == [[[96.0, 64.0, 0.0, 0.0, 96.0, 64.0]] * 2]  # without and with the prompt
    assert len(list((true.file.parent / "sample").glob("*_00_*.png"))) == 1

    told.clear()
    compatible = train.run(dataset, *flags, "--sdxl_crop_compat")
    assert told == [compat_sizes(views).tolist()]
    assert true.losses != compatible.losses


def test_a_preserved_picture_is_compared_at_its_own_sizes(training_of: Make, told: Any):
    train = training_of("sdxl_train_network", "sdxl")
    folders = [train.pictures((name,), to=name) for name in ("red_circle.png", "red_star.png")]
    with Image.open(folders[1] / "red_star.png") as picture:
        picture.resize((96, 96)).save(folders[1] / "red_star.png")
    preserved = {"image_dir": str(folders[1]), "custom_attributes": {"diff_output_preservation": True}}
    dataset = train.dataset_of({"subsets": [{"image_dir": str(folders[0])}, preserved]})
    run = train.run(dataset, "--network_train_unet_only", *CACHED, "--max_train_steps=1")
    (batch,) = run.batches
    (kept,) = batch.preserves_output.nonzero().flatten().tolist()
    unchanged, trained = sorted(told, key=len)
    assert trained == true_sizes(batch.views).tolist()
    assert unchanged == [trained[kept]] == [[96.0, 96.0, 0.0, 0.0, 64.0, 64.0]]


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
        "--optimizer_type=Adafactor",
        "--fused_backward_pass",  # where chunks of one tensor of the file step one by one
        "--max_grad_norm=0",
        TWO_STEPS,
        *("--optimizer_args", "relative_step=False", "scale_parameter=False"),
    )
    run = train.run(train.dataset(train.pictures()), *flags)
    before, after = of(train.model), run.weights
    names = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert names and all(name.startswith("conditioner.embedders.1.") for name in names)


def test_the_text_encoder_of_train_db_stops_when_it_is_told_to(training_of: Make):
    train = training_of("train_db", "sd1")
    dataset = train.dataset(train.pictures(), batch_size=4)
    flags = ("--stop_text_encoder_training=1", "--max_train_epochs=2", "--optimizer_type=Adafactor")
    message = r"train in step 2 of the run\. Give rates above 0 in --block_lr, leave --stop_text_encoder_training out"
    with pytest.raises(OptionError, match=message):
        train.run(dataset, *flags, "--block_lr=" + ",".join("0" * 29))
    run = train.run(dataset, *flags, "--save_every_n_epochs=1")
    before, first, last = (of(path) for path in (train.model, *run.trainer.saved_files))
    encoder = [name for name in last if "cond_stage_model." in name]
    unet = "model.diffusion_model.input_blocks.0.0.weight"
    assert len(run.losses) == 2
    assert any(not torch.equal(first[name], before[name]) for name in encoder if name in before)
    assert all(torch.equal(first[name], last[name]) for name in encoder)
    assert not torch.equal(first[unet], last[unet])


def test_train_db_keeps_the_class_by_regularisation_pictures(training_of: Make):
    train = training_of("train_db", "sd1")
    for folder in ("mine/2_zorp star", "class/1_star"):
        (train.folder / folder).parent.mkdir()
        train.pictures(SQUARE[:2] if folder.startswith("mine") else SQUARE, to=folder)
    folders = [f"--train_data_dir={train.folder / 'mine'}", f"--reg_data_dir={train.folder / 'class'}"]
    places = [*folders, "--resolution=64", "--train_batch_size=8", "--max_train_epochs=1"]

    def run(*weight: str) -> Any:
        arguments = train.arguments(Path("none"), "--stop_text_encoder_training=-1", *places, *weight)
        return train.run_arguments([each for each in arguments if "dataset_config" not in each])

    halved, whole = run("--prior_loss_weight=0.5"), run()
    weights, others = ([batch.loss_weights.tolist() for batch in each.batches] for each in (halved, whole))
    assert [sorted(batch) for batch in weights] == [[0.5] * 4 + [1.0] * 4] and others == [[1.0] * 8]
    assert 0.4 * whole.losses[0] < halved.losses[0] < 0.95 * whole.losses[0]


def test_whole_sd2_predicts_the_velocity(training_of: Make):
    train = training_of("fine_tune", "sd2")
    flags = ("--v_parameterization", "--zero_terminal_snr", "--min_snr_gamma=5", "--train_text_encoder", TWO_STEPS)
    run = train.run(train.dataset(train.pictures()), *flags)
    before, after = of(train.model), run.weights
    kept = {name for name in before if name in after and torch.equal(before[name], after[name])}
    assert all(value == value and value < 100 for value in run.losses)
    assert any(name.startswith("cond_stage_model.model.transformer.resblocks.0.") for name in before.keys() - kept)
    assert all(name in kept for name in before if name.startswith("first_stage_model."))
