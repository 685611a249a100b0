"""The parts of quickstart.py that decide something; the whole of it is what CI runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quickstart

ROOT = Path(quickstart.__file__).parent


@pytest.mark.parametrize(
    ("version", "is_suitable"),
    [("2.6.0", True), ("2.13.0+cpu", True), ("3.0", True), ("2.5.1+cu121", False), ("1.13.1", False), (None, False)],
)
def test_a_torch_of_2_6_or_newer_is_reused(version: str | None, is_suitable: bool):
    assert quickstart.suitable_torch(version) == (version if is_suitable else None)


def test_the_oldest_torch_is_that_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert quickstart.TORCH_RANGE in lines
    assert "torch>=" + ".".join(map(str, quickstart.OLDEST_TORCH)) == quickstart.TORCH_RANGE


def test_without_a_gpu_the_cpu_build_is_asked_for_first():
    assert quickstart.torch_candidates(None, has_gpu=False, platform="linux")[0] == quickstart.TORCH_PIN + "+cpu"
    assert quickstart.torch_candidates(None, has_gpu=False, platform="win32")[0] == quickstart.TORCH_PIN + "+cpu"
    assert quickstart.torch_candidates(None, has_gpu=False, platform="darwin")[0] == quickstart.TORCH_PIN


def test_with_a_gpu_the_usual_build_is_taken_and_the_user_has_the_last_word():
    assert quickstart.torch_candidates(None, has_gpu=True, platform="linux") == [quickstart.TORCH_RANGE]
    assert quickstart.torch_candidates("torch==2.7.1", has_gpu=False, platform="linux") == ["torch==2.7.1"]


NO_SUCH_VERSION = (
    "ERROR: Could not find a version that satisfies the requirement torch==9 (from versions: 2.6)\n"
    "ERROR: No matching distribution found for torch==9\n"
)
NO_NETWORK = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n" + NO_SUCH_VERSION


def test_a_missing_version_is_told_from_a_missing_network():
    assert quickstart.is_version_missing(NO_SUCH_VERSION)
    assert not quickstart.is_version_missing(NO_NETWORK)
    assert "does not reach its package index" in quickstart.explain_pip(NO_NETWORK, "torch")
    assert quickstart.explain_pip(NO_SUCH_VERSION, "torch==9").endswith("No matching distribution found for torch==9")
    assert "disk is full" in quickstart.explain_pip("OSError: [Errno 28] No space left on device", "torch")


def test_the_stamp_remembers_extras_until_the_requirements_change(tmp_path: Path):
    stamp = tmp_path / "stamp.json"
    base = quickstart.requirements_hash(None, None)
    assert quickstart.read_stamp(stamp, base) is None
    quickstart.write_stamp(stamp, base, {"peft": quickstart.EXTRAS["peft"]})
    assert quickstart.read_stamp(stamp, base) == {"peft": quickstart.EXTRAS["peft"]}
    assert quickstart.read_stamp(stamp, quickstart.requirements_hash("torch==2.7.1", None)) is None
    stamp.write_text(json.dumps([1]))
    assert quickstart.read_stamp(stamp, base) is None


def test_every_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quickstart, "OUTPUT", tmp_path / "quickstart")
    (tmp_path / "quickstart" / "run-9").mkdir(parents=True)
    (tmp_path / "quickstart" / "run-old").mkdir()
    assert [quickstart._new_run_folder().name for _ in range(2)] == ["run-10", "run-11"]


def values_of(command: list[str]) -> dict[str, str]:
    return dict(part[2:].split("=", 1) for part in command if part.startswith("--") and "=" in part)


def test_the_example_commands_name_files_that_exist_or_that_they_make(tmp_path: Path):
    train = quickstart.train_command(tmp_path)
    values = values_of(train)
    assert "sd3_train_network.py" in train and values["pretrained_model_name_or_path"] == quickstart.BASE
    dataset = (ROOT / values["dataset_config"]).read_text(encoding="utf-8")
    folders = re.findall(r'image_dir = "(.+)"', dataset)
    assert folders == ["examples/zorp", quickstart.SHAPES] and (ROOT / folders[0]).is_dir()
    assert quickstart.shapes_command()[:3] == ["-m", "examples.tiny_sd3.pictures", quickstart.SHAPES]
    lora, sheet = tmp_path / "zorp.safetensors", tmp_path / "sheet.png"
    assert lora == Path(values["output_dir"]) / f"{values['output_name']}.{values['save_model_as']}"
    show = quickstart.sheet_command(lora, sheet)
    assert show[:3] == ["-m", "examples.tiny_sd3.before_after", quickstart.BASE]
    assert (ROOT / values_of(show)["prompts"]).is_file()


def test_without_the_base_model_the_example_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(quickstart, "BASE", "examples/nowhere.safetensors")
    monkeypatch.setattr(quickstart, "OUTPUT", tmp_path)
    with pytest.raises(quickstart.QuickstartError, match="nowhere.safetensors is missing"):
        quickstart.train_example(quickstart.Environment(sys.executable, tmp_path, "this one"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--extras", "xformer"], "There are: xformers, peft"),
        (["run", "--", "-k", "x"], "quickstart.py test -- ..."),
        (["--venv", "x", "--no-venv"], "not allowed with"),
        (["train"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], part: str):
    done = subprocess.run([sys.executable, "quickstart.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert part in done.stderr and "Traceback" not in done.stderr
