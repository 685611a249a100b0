"""The base model that ships with the project: the quickstart's training runs on it, and LoRAs add up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import quickstart
from examples.tiny_sd3.painter import Painter
from examples.tiny_sd3.pictures import write_pictures
from library.tensorfile import read_header, read_tensors
from networks.lora_sd3 import create_network, create_network_from_weights

ROOT = Path(quickstart.__file__).parent
BASE = ROOT / quickstart.BASE

CAPTIONS, SEEDS = ("a red star on a blue background", "a zorp on grass at night"), (1, 2)


def run(command: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_commands_of_the_quickstart_train_a_lora_and_draw_its_sheet(tmp_path: Path):
    lora, sheet, prompts = tmp_path / "zorp.safetensors", tmp_path / "sheet.png", tmp_path / "few.txt"
    shapes, dataset = tmp_path / "shapes", tmp_path / "quickstart.toml"
    text = (ROOT / "examples" / "quickstart.toml").read_text(encoding="utf-8")
    dataset.write_text(text.replace(quickstart.SHAPES, shapes.as_posix()), encoding="utf-8")
    write_pictures(shapes, 8)
    command = [*quickstart.train_command(tmp_path), f"--dataset_config={dataset}", "--max_train_steps=3"]
    printed = run(command)
    assert "done: 3 steps" in printed
    before = read_tensors(read_header(lora))
    assert all(tensor.isfinite().all() for tensor in before.values())
    assert any(tensor.any() for name, tensor in before.items() if "lora_up" in name)
    prompts.write_text("a zorp on a red background --w 64 --h 64 --d 1 --s 2 --l 3\n", encoding="utf-8")
    assert str(sheet) in run([*quickstart.sheet_command(lora, sheet), f"--prompts={prompts}"])
    assert sheet.is_file()


@pytest.fixture(scope="module")
def two_loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of LoRAs that change MMDiT and text encoders, with different ranks and alphas."""
    folder, painter = tmp_path_factory.mktemp("loras"), Painter(BASE)
    files = folder / "one.safetensors", folder / "other.safetensors"
    for file, (rank, alpha) in zip(files, ((4, 4.0), (2, 1.0)), strict=True):
        network = create_network(1.0, rank, alpha, None, list(painter.encoders.values()), painter.mmdit)
        torch.manual_seed(rank)
        for name, parameter in network.named_parameters():
            if "lora_up" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        network.save_weights(file)
    return files


STRENGTHS = 0.8, 0.5


def merged(painter: Painter, file: Path, strength: float) -> None:
    encoders = list(painter.encoders.values())
    network, _ = create_network_from_weights(strength, str(file), None, encoders, painter.mmdit, for_inference=True)
    network.merge_to(encoders, painter.mmdit)


def test_two_loras_change_the_weights_by_the_sum_of_what_each_changes(two_loras: tuple[Path, Path]):
    before = {name: tensor.clone() for name, tensor in Painter(BASE).mmdit.state_dict().items()}
    both = Painter(BASE)
    changes = []
    for file, strength in zip(two_loras, STRENGTHS, strict=True):
        alone = Painter(BASE)
        merged(alone, file, strength)
        merged(both, file, strength)
        changes.append({name: tensor - before[name] for name, tensor in alone.mmdit.state_dict().items()})
    assert any(change.abs().max() > 1e-2 for change in changes[0].values())
    for name, tensor in both.mmdit.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + changes[0][name] + changes[1][name], atol=1e-5, rtol=1e-5)


def test_two_loras_beside_the_model_draw_what_their_sum_in_the_weights_draws(two_loras: tuple[Path, Path]):
    beside, inside, first_alone = Painter(BASE), Painter(BASE), Painter(BASE)
    first_alone.add_lora(two_loras[0], STRENGTHS[0])
    for file, strength in zip(two_loras, STRENGTHS, strict=True):
        beside.add_lora(file, strength)
        merged(inside, file, strength)
    ours, theirs, others = (_paint(painter) for painter in (beside, inside, first_alone))
    assert numpy.abs(ours - theirs).max() <= 2 and numpy.abs(ours - theirs).mean() < 0.05  # of 255
    assert numpy.abs(ours - others).mean() > 1


def _paint(painter: Painter) -> numpy.ndarray:
    return numpy.stack([numpy.asarray(image, dtype=int) for image in painter.paint(CAPTIONS, SEEDS, steps=4)])
