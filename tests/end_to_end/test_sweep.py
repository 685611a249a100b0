"""tools/sweep.py: one of many trainings equals the same training alone, and the sweep outlives what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from library.tensorfile import read_header, read_tensors
from library.training.sweeping.sweep_run import SweepRun
from library.training.watching.numbers import RunNumbers, read_numbers
from tools import sweep

COMMON = {
    "network_module": "networks.lora",
    "network_args": ["rank_dropout=0.2"],
    "max_train_steps": 4,
    "learning_rate": 1e-2,
    "network_alpha": 4,
    "validation_split": 0.3,
    "validate_every_n_steps": 2,
    "save_every_n_steps": 2,
    "max_data_loader_n_workers": 0,
}
PAIR = '[[variation]]\nname = "low"\nnetwork_dim = 2\n[[variation]]\nname = "other"\nnetwork_dim = 4\nseed = 7\n'


@pytest.fixture
def sweep_file(tmp_path: Path, tiny_sd3: Path, tiny_pictures: Path) -> Callable[..., Path]:
    """Write a sweep file of these variations and options of all."""

    def write(variations: str, **options: Any) -> Path:
        dataset = tmp_path / "data.toml"
        dataset.write_text(
            "[general]\nresolution = 64\ncaption_extension = '.txt'\n[[datasets]]\nbatch_size = 2\n"
            f"[[datasets.subsets]]\nimage_dir = '{tiny_pictures.as_posix()}'\n",
            encoding="utf-8",
        )
        given = {
            "pretrained_model_name_or_path": tiny_sd3.as_posix(),
            "dataset_config": dataset.as_posix(),
            **COMMON,
            **options,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items() if value is not None]
        path = tmp_path / "sweep.toml"
        text = "\n".join(['[sweep]\nscript = "sd3_train_network.py"\n[options]', *lines, variations])
        path.write_text(text, encoding="utf-8")
        return path

    return write


def run(file: Path, out: Path, *more: str) -> int:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return sweep.main([str(file), f"--output_dir={out}", *more])


def alone(out: Path, name: str, folder: Path) -> RunNumbers:
    """The numbers of the training that the options file of a variation starts by itself."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = [f"--config_file={out / name / 'options.toml'}", f"--output_dir={folder}", "--resume="]
    trainer = sweep.make_trainer("sd3_train_network.py", arguments)
    assert trainer.run() == 0
    return numbers_of(folder, name)


def numbers_of(folder: Path, name: str) -> RunNumbers:
    numbers = read_numbers(folder / f"{name}_numbers.json")
    assert numbers is not None
    return numbers


def tensors(path: Path) -> Mapping[str, torch.Tensor]:
    return read_tensors(read_header(path))


def assert_same(folder: Path, name: str, other: Path) -> None:
    """Losses, validation losses and every tensor of two runs."""
    own, wanted = numbers_of(folder, name), numbers_of(other, name)
    assert own.losses == pytest.approx(wanted.losses, rel=1e-6) and own.steps == wanted.steps
    assert [step for step, _ in own.validation] == [step for step, _ in wanted.validation]
    assert [loss for _, loss in own.validation] == pytest.approx([loss for _, loss in wanted.validation], rel=1e-6)
    mine, theirs = tensors(folder / f"{name}.safetensors"), tensors(other / f"{name}.safetensors")
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-7)


def test_one_of_several_in_turn_equals_the_same_training_alone(sweep_file, tmp_path: Path):
    out = tmp_path / "out"
    assert run(sweep_file(PAIR, cache_latents=True), out, "--together=yes") == 0
    for name in ("low", "other"):
        alone(out, name, tmp_path / f"alone_{name}")
        assert_same(out / name, name, tmp_path / f"alone_{name}")
    assert numbers_of(out / "low", "low").losses != numbers_of(out / "other", "other").losses
    rows = json.loads((out / "sweep.json").read_text())["variations"]
    lowest = sorted(rows, key=lambda row: row["validation_loss"])
    assert [row["name"] for row in rows] == [row["name"] for row in lowest] and rows[0]["state"] == "finished"
    page = (out / "sweep.html").read_text(encoding="utf-8")
    assert page.index(f">{rows[0]['name']}<") < page.index(f">{rows[1]['name']}<")


def test_a_training_of_its_own_process_comes_to_the_same(sweep_file, tmp_path: Path):
    options = {"network_train_unet_only": True, "max_train_steps": 2}
    assert run(sweep_file(PAIR, **options), tmp_path / "together", "--together=yes") == 0
    assert run(sweep_file(PAIR.partition('[[variation]]\nname = "other"')[0], **options), tmp_path / "apart") == 0
    assert_same(tmp_path / "apart" / "low", "low", tmp_path / "together" / "low")


def test_a_sweep_that_was_stopped_goes_on_where_it_was(sweep_file, tmp_path: Path, monkeypatch):
    file = sweep_file('[[variation]]\nname = "short"\nmax_train_steps = 2\n[[variation]]\nname = "long"\nseed = 1\n')
    out, after = tmp_path / "out", SweepRun._end

    def end(self: SweepRun, turn: Any) -> None:
        after(self, turn)
        if turn.name == "short":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SweepRun, "_end", end)
    assert run(file, out) == 130
    assert numbers_of(out / "short", "short").is_finished and not numbers_of(out / "long", "long").is_finished
    monkeypatch.undo()
    written = (out / "short" / "short.safetensors").stat().st_mtime_ns
    assert run(file, out) == 0
    assert (out / "short" / "short.safetensors").stat().st_mtime_ns == written
    alone(out, "long", tmp_path / "alone")
    assert_same(out / "long", "long", tmp_path / "alone")


def test_a_training_that_fails_leaves_the_others_alone(sweep_file, tmp_path: Path, capfd):
    bad = '[[variation]]\nname = "bad"\nlearning_rate = 1e30\nmax_bad_steps = 1\n'
    out = tmp_path / "out"
    assert run(sweep_file(PAIR + bad), out, "--together=yes") == 2
    rows = {row["name"]: row for row in json.loads((out / "sweep.json").read_text())["variations"]}
    assert rows["bad"]["state"].startswith("failed: the training has diverged")
    assert rows["low"]["state"] == rows["other"]["state"] == "finished"
    assert "bad cannot go on, the others do" in capfd.readouterr().err
    alone(out, "other", tmp_path / "alone")
    assert_same(out / "other", "other", tmp_path / "alone")


@pytest.mark.parametrize(
    ("variations", "options", "more", "told"),
    [
        (PAIR + "[[variation]]\nnetwrok_dim = 3\n", {}, (), "variation 'netwrok_dim=3': "),
        (PAIR + '[[variation]]\nname = "x"\nnetwork_dim = "many"\n', {}, (), "variation 'x': "),
        (PAIR, {"validation_split": None}, (), "no picture is kept for validation"),
        (PAIR + "[[variation]]\nmixed_precision = 'bf16'\n", {}, ("--together=yes",), "--mixed_precision is no in one"),
        (PAIR + "[[variation]]\nresolution = 32\n", {"dataset_config": None}, (), "One of"),
        (PAIR, {"pretrained_model_name_or_path": "none.safetensors"}, (), "none.safetensors"),
        (PAIR, {}, ("--launcher=accelrate launch",), "there is no program"),
        (PAIR, {}, ("--launcher=accelerate 'launch",), "cannot be read as a command"),
        (PAIR, {"torch_compile": True}, ("--together=yes",), "--torch_compile compiles the layers"),
    ],
)
def test_what_is_wrong_is_told_before_anything_trains(
    sweep_file, tmp_path: Path, capfd, variations: str, options: dict[str, Any], more: tuple[str, ...], told: str
):
    assert run(sweep_file(variations, **options), tmp_path / "out", *more) == 2
    error = capfd.readouterr().err
    assert told in error and "Traceback" not in error
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_where_there_is_no_room_for_all_one_trains_after_the_other(sweep_file, tmp_path: Path, capfd, monkeypatch):
    from library import memory_use

    def needed(variations: str) -> float:
        monkeypatch.setattr(memory_use, "available_host_memory", lambda: 1 << 20)
        assert run(sweep_file(variations), tmp_path / "out", "--dry_run") == 0
        found = re.search(r"together they would need about ([\d.]+) (\w)B of memory", capfd.readouterr().err)
        assert found
        return float(found[1]) * {"M": 1, "G": 1000}[found[2]]

    wide = '[[variation]]\nname = "wide"\nnetwork_dim = 4096\n'
    assert needed(PAIR + wide) > needed(PAIR) + 20
    monkeypatch.setattr(memory_use, "available_host_memory", lambda: 1 << 45)
    assert run(sweep_file(PAIR + wide), tmp_path / "out", "--dry_run") == 0
    assert "3 variations, in turn beside one base" in capfd.readouterr().err


def test_losses_that_cannot_be_compared_are_told(sweep_file, tmp_path: Path, capfd):
    other = "[[variation]]\nweighting_scheme = 'sigma_sqrt'\n"
    assert run(sweep_file(PAIR + other), tmp_path / "out", "--dry_run") == 0
    assert "differ in --weighting_scheme, which changes the loss itself" in capfd.readouterr().err


def test_other_validation_pictures_are_refused(sweep_file, tmp_path: Path, tiny_pictures: Path, capfd):
    other = f"[[variation]]\nname = 'o'\n[variation.subsets.'{tiny_pictures.as_posix()}']\nvalidation_split = 0.6\n"
    assert run(sweep_file(PAIR + other), tmp_path / "out") == 2
    assert "'o' keeps other pictures for validation than 'low'" in capfd.readouterr().err


def test_a_page_that_cannot_be_written_stops_no_training(sweep_file, tmp_path: Path, capfd):
    out = tmp_path / "out"
    (out / "sweep.html").mkdir(parents=True)
    assert run(sweep_file(PAIR, max_train_steps=2), out, "--together=yes") == 5
    assert all(numbers_of(out / name, name).is_finished for name in ("low", "other"))
    assert "the ranking is not written, training goes on" in capfd.readouterr().err


def test_a_typo_that_was_corrected_is_forgotten(sweep_file, tmp_path: Path, capfd):
    typo = '[[variation]]\nname = "x"\nnetwrok_dim = 3\n'
    assert run(sweep_file(PAIR + typo), tmp_path / "out", "--dry_run") == 2
    assert run(sweep_file(PAIR + typo), tmp_path / "out") == 2
    assert run(sweep_file(PAIR + typo.replace("netwrok", "network")), tmp_path / "out", "--dry_run") == 0


def test_a_dry_run_tells_the_steps_and_trains_nothing(sweep_file, tmp_path: Path, capfd):
    assert run(sweep_file(PAIR), tmp_path / "out", "--dry_run") == 0
    told = capfd.readouterr().err
    assert "low: " in told and "2 variations, in turn beside one base" in told
    assert not list((tmp_path / "out").rglob("*.safetensors"))
