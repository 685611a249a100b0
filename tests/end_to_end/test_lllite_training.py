"""ControlNet-LLLite through its script: what trains, what is saved, going on, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sdxl_train_control_net_lllite
import sdxl_train_network
from library.families.sdxl.family import SdxlFamily
from library.tensorfile import read_header
from networks.control_net_lllite import create_network
from tests.end_to_end.conftest import SQUARE

Make = Callable[..., Any]

SCRIPT = "sdxl_train_control_net_lllite"
SMALL = ("--cond_emb_dim=4", "--network_dim=8")
TWO_STEPS = "--max_train_steps=2"
CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
FIRST = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def train(training_of: Make) -> Any:
    """Trainings of an LLLite on the tiny SDXL."""
    return training_of(SCRIPT, "sdxl")


@pytest.fixture(scope="module")
def strong(tiny_unet_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLLite of random numbers, whose picture is seen from the first step on."""
    family = SdxlFamily(pretrained=tiny_unet_models["sdxl"])
    unet = family.load_denoiser(family.inspect(), torch.float32, torch.device("cpu"))
    draw = torch.Generator().manual_seed(2)
    network = create_network(1.0, 8, None, None, None, unet, generator=draw, cond_emb_dim="4")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
    path = tmp_path_factory.mktemp("lllite") / "strong.safetensors"
    network.save_weights(path, torch.float32, {})
    return path


@pytest.fixture
def pictures(train: Any) -> Path:
    """Pictures, and beside them a folder `told` with a conditioning picture of each."""
    folder: Path = train.pictures()
    (train.folder / "told").mkdir()
    for name in SQUARE:
        Image.open(folder / name).convert("L").save(train.folder / "told" / name)
    return folder


def dataset_of(train: Any, pictures: Path, **keys: Any) -> Path:
    path: Path = train.dataset(pictures, conditioning_data_dir=str(train.folder / "told"), **keys)
    return path


def test_cached_is_live_and_the_picture_makes_a_difference(train: Any, pictures: Path, strong: Path):
    dataset = dataset_of(train, pictures, flip_aug=True)
    flags = (*SMALL, f"--network_weights={strong}", "--learning_rate=1e-9")
    live = train.run(dataset, *flags, TWO_STEPS)
    cached = train.run(dataset, *flags, TWO_STEPS, *CACHED)
    assert {view.is_flipped for batch in cached.batches for view in batch.views} == {True, False}
    assert cached.losses == pytest.approx(live.losses, rel=1e-4)
    for path in (train.folder / "told").iterdir():
        Image.new("RGB", (64, 64), "white").save(path)
    white = train.run(dataset, *flags, "--max_train_steps=1", *CACHED)
    assert white.losses[0] != pytest.approx(cached.losses[0], rel=1e-2)


def test_files_have_the_published_form_and_say_what_they_are(train: Any, pictures: Path):
    flags = (*CACHED, "--max_train_steps=1", "--network_dropout=0.1")
    arguments = train.arguments(dataset_of(train, pictures), *flags)
    run = train.run_arguments([argument for argument in arguments if argument != "--no_metadata"])
    assert {"_".join(name.split("_")[:2]) for name in run.weights} == {"lllite_unet"}
    assert run.weights[f"{FIRST}.mid.0.weight"].shape == (64, 96)
    assert run.weights[f"{FIRST}.up.0.weight"].any()
    assert "to_out" not in " ".join(run.weights)
    assert {adapter.dropout for adapter in run.trainer.network.adapters()} == {0.1}
    metadata = read_header(run.file).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/control-net-lllite"
    assert (metadata["ss_network_dim"], metadata["ss_network_dropout"]) == ("64", "0.1")
    assert json.loads(metadata["ss_network_args"]) == {"cond_emb_dim": "32", "dropout": "0.1"}
    assert not [key for key in metadata if key.startswith("sshs_")]


def test_a_resumed_run_is_an_unbroken_one(train: Any, pictures: Path):
    dataset = dataset_of(train, pictures, flip_aug=True)
    flags = (*SMALL, *CACHED, "--ema_decay=0.5", TWO_STEPS)
    whole = train.run(dataset, *flags, "--save_every_n_steps=1", "--save_state")
    state = min(path for path in whole.file.parent.glob("*state") if "step" in path.name)
    resumed = train.run(dataset, *flags, f"--resume={state}")
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5) and len(whole.losses) == 2
    assert resumed.weights.keys() == whole.weights.keys()
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], tensor, msg=name)


def test_a_training_begins_with_a_file_and_may_compute_in_half_precision(train: Any, pictures: Path, strong: Path):
    flags = (*SMALL, *CACHED, "--max_train_steps=1", "--learning_rate=1e-9", f"--network_weights={strong}")
    run = train.run(dataset_of(train, pictures), *flags, "--mixed_precision=bf16", "--save_precision=float")
    for name, tensor in load_file(strong).items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_sample_pictures_follow_the_picture_of_their_prompt(train: Any, pictures: Path, strong: Path):
    prompts = train.folder / "prompts.txt"
    told = train.folder / "told" / SQUARE[0]
    line = "a square --w 64 --h 64 --s 1 --l 2 --d 1"
    prompts.write_text(f"{line} --cn {told}\n{line}\n", encoding="utf-8")
    dataset = dataset_of(train, pictures)
    flags = (f"--sample_prompts={prompts}", "--sample_every_n_steps=1", f"--network_weights={strong}")
    run = train.run(dataset, *SMALL, *CACHED, "--max_train_steps=1", "--learning_rate=1e-9", *flags)
    assert any("1 of 2 prompts have no --cn" in line for line in run.log)
    with_cn, without = (pixels(path) for path in sorted((run.file.parent / "sample").glob("*_1.png")))
    assert (with_cn - without).abs().max() > 2


def pixels(path: Path) -> torch.Tensor:
    return torch.tensor(list(Image.open(path).tobytes())).float()


def test_a_forecast_counts_the_modules(train: Any, pictures: Path, capsys: pytest.CaptureFixture[str]):
    arguments = train.arguments(dataset_of(train, pictures), *SMALL, TWO_STEPS, *CACHED, "--dry_run")
    assert sdxl_train_control_net_lllite.main(arguments) == 0
    shown = "".join(capsys.readouterr())
    assert "ControlNet-LLLite, 8 wide, embedding of 4" in shown and "Traceback" not in shown


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], script: Any) -> str:
    """What is said, in one line, by a run that ends with exit code 2."""
    capsys.readouterr()
    assert script.main(arguments) == 2
    return " ".join("".join(capsys.readouterr()).split())


def test_wrong_use_is_refused_in_a_sentence(train: Any, pictures: Path, capsys: pytest.CaptureFixture[str]):
    def said(*flags: str, dataset: Path | None = None) -> str:
        given = dataset or dataset_of(train, pictures)
        return refusal(train.arguments(given, *SMALL, TWO_STEPS, *flags), capsys, sdxl_train_control_net_lllite)

    assert "subset 1: no conditioning_data_dir" in said(dataset=train.dataset(pictures))
    shutil.move(train.folder / "told" / SQUARE[0], train.folder / SQUARE[0])
    assert f"{SQUARE[0]} has no conditioning picture in" in said()
    shutil.move(train.folder / SQUARE[0], train.folder / "told" / SQUARE[0])
    assert "--cond_emb_dim must be an even number, got 5." in said("--cond_emb_dim=5")
    assert "--network_dropout must be below 1" in said("--network_dropout=1")
    nothing = train.folder / "nothing.safetensors"
    assert f"{nothing} does not exist" in said(f"--network_weights={nothing}")
    wrong = train.folder / "prompts.txt"
    wrong.write_text("a --cn nothing.png\n", encoding="utf-8")
    assert "--cn nothing.png is no file" in said(f"--sample_prompts={wrong}", "--sample_every_n_steps=1")
    assert "is a whole checkpoint" in said(f"--network_weights={train.model}")


def test_other_files_and_other_scripts_are_refused(
    train: Any, pictures: Path, training_of: Make, capsys: pytest.CaptureFixture[str]
):
    lora = training_of("sdxl_train_network", "sdxl")
    flags = ("--network_train_unet_only", *CACHED, "--max_train_steps=1")
    file = lora.run(lora.dataset(pictures), *flags).file
    dataset = dataset_of(train, pictures)
    arguments = train.arguments(dataset, *SMALL, TWO_STEPS, f"--network_weights={file}")
    assert "is a LoRA for SDXL" in refusal(arguments, capsys, sdxl_train_control_net_lllite)
    module = "--network_module=networks.control_net_lllite"
    arguments = [word for word in lora.arguments(lora.dataset(pictures), *flags) if "network_module" not in word]
    assert "with sdxl_train_control_net_lllite.py" in refusal([*arguments, module], capsys, sdxl_train_network)
