import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.convert_sd3_lora import main

NAME = "lora_unet_joint_blocks_0_x_block_mlp_fc1"


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "my lora.safetensors"
    tensors = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(16, 2), "alpha": torch.tensor(1.0)}
    save_file({f"{NAME}.{key}": tensor for key, tensor in tensors.items()}, path)
    return path


def test_run_as_a_file(lora, tmp_path):
    script = Path(__file__).parents[3] / "tools" / "convert_sd3_lora.py"
    target = tmp_path / "out" / "converted.safetensors"
    done = subprocess.run(
        [sys.executable, str(script), str(lora), str(target), "--to", "diffusers"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 tensors written" in done.stdout
    up = load_file(target)["transformer.transformer_blocks.0.ff.net.0.proj.lora_B.weight"]
    assert torch.equal(up, torch.full((16, 2), 0.5))


def test_the_source_is_never_overwritten(lora, capsys):
    before = lora.read_bytes()
    assert main([str(lora), str(lora), "--to", "diffusers"]) == 2
    assert "source and target at once" in capsys.readouterr().err
    assert lora.read_bytes() == before


def test_alpha_is_folded_on_request(lora, tmp_path):
    assert main([str(lora), str(tmp_path / "folded.safetensors"), "--to", "kohya", "--fold_alpha"]) == 0
    assert sorted(load_file(tmp_path / "folded.safetensors")) == [f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"]


@pytest.mark.parametrize(
    ("source", "target", "options", "message", "code"),
    [
        ("no.safetensors", "x.safetensors", ["--to", "diffusers"], "does not exist", 2),
        ("page.safetensors", "x.safetensors", ["--to", "diffusers"], "web page", 2),
        ("my lora.safetensors", "x.ckpt", ["--to", "diffusers"], "must end in .safetensors", 2),
        ("my lora.safetensors", "x.safetensors", ["--to", "kohya"], "kohya layout already", 2),
        ("other.safetensors", "x.safetensors", ["--to", "diffusers"], "not of the kohya layout", 2),
        ("other.safetensors", "x.safetensors", ["--to", "kohya"], "Only LoRA can be converted", 2),
        ("my lora.safetensors", "page.safetensors/x.safetensors", ["--to", "diffusers"], "cannot be written", 5),
    ],
)
def test_errors_are_one_line(lora, tmp_path, capsys, source, target, options, message, code):
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>please log in</html>", encoding="utf-8")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert main([str(tmp_path / source), str(tmp_path / target), *options]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message in output.err
