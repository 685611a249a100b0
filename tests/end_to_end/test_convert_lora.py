"""networks/convert_lora.py as people call it: what it writes, what it tells, what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from networks.convert_lora import main
from networks.weights import how_to_use

NAME = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
PATH = "transformer.transformer_blocks.0.ff.net.0.proj"
CLIP = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def factors(name, down=".lora_down.weight", up=".lora_up.weight"):
    return {name + down: torch.ones(2, 4), name + up: torch.ones(16, 2)}


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "my lora.safetensors"
    save_file(factors(NAME) | {f"{NAME}.alpha": torch.tensor(1.0)}, path, {"ss_network_dim": "2"})
    return path


def test_run_as_a_file(lora, tmp_path):
    script = Path(__file__).parents[2] / "networks" / "convert_lora.py"
    target = tmp_path / "out" / "converted.safetensors"
    done = subprocess.run(
        [sys.executable, str(script), str(lora), str(target), "--to", "diffusers", "--verify_export"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == ""
    assert "2 tensors written" in done.stderr and "diffusers: all 1 modules, max error" in done.stderr
    assert torch.equal(load_file(target)[f"{PATH}.lora_B.weight"], torch.full((16, 2), 0.5))


def test_there_and_back_is_the_file_itself(lora, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    assert main([str(lora), str(there), "--to=native", "--verify_export"]) == 0
    assert main([str(there), str(back), "--to=kohya", "--verify_export"]) == 0
    source, found = load_file(lora), load_file(back)
    assert source.keys() == found.keys() and all(torch.equal(source[key], found[key]) for key in source)


def test_a_check_changes_nothing_and_tells_a_line_for_each_program(lora, capsys):
    before = lora.read_bytes()
    assert main([str(lora), "--verify_export"]) == 0
    lines = capsys.readouterr().err.splitlines()
    starts = ("ComfyUI: all 1", "Forge: all 1", "A1111: refuses", "diffusers: ignores")
    assert all(any(line.startswith(f"INFO {start}") for line in lines) for start in starts)
    assert lora.read_bytes() == before


def test_a_lost_alpha_is_found_beside_the_original(lora, tmp_path, capsys):
    save_file(factors(NAME), tmp_path / "lost.safetensors")
    assert main([str(tmp_path / "lost.safetensors"), "--verify_export"]) == 0
    assert main([str(tmp_path / "lost.safetensors"), "--verify_export", f"--reference={lora}"]) == 2
    assert "the check has failed: ComfyUI, Forge" in capsys.readouterr().err


def test_number_formats_change_the_factors_alone(lora, tmp_path):
    target = tmp_path / "half.safetensors"
    assert main([str(lora), str(target), "--to=kohya", "--save_precision=fp16"]) == 0
    found = load_file(target)
    assert found[f"{NAME}.lora_up.weight"].dtype == torch.float16 and found[f"{NAME}.alpha"].dtype == torch.float32


def test_numbers_too_large_for_the_format_are_refused(tmp_path, capsys):
    large = {key: tensor * 1e6 for key, tensor in factors(NAME).items()}
    save_file(large, tmp_path / "large.safetensors")
    target = tmp_path / "half.safetensors"
    assert main([str(tmp_path / "large.safetensors"), str(target), "--to=kohya", "--save_precision=fp16"]) == 5
    assert not target.exists() and "float16 cannot hold. Use --save_precision bf16" in capsys.readouterr().err


def test_a_strength_in_the_metadata_is_moved_into_the_factors(tmp_path, capsys):
    source, target = tmp_path / "noted.safetensors", tmp_path / "plain.safetensors"
    note = {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 1}'}
    save_file(factors(PATH, ".lora_A.weight", ".lora_B.weight"), source, note)
    assert main([str(source), "--verify_export"]) == 2
    assert "--to diffusers helps" in capsys.readouterr().err
    assert main([str(source), str(target), "--to=diffusers", "--verify_export"]) == 0
    assert torch.equal(load_file(target)[f"{PATH}.lora_B.weight"], torch.full((16, 2), 0.5))
    assert main([str(target), str(tmp_path / "again.safetensors"), "--to=diffusers"]) == 2
    assert "has this form already" in capsys.readouterr().err


def test_what_is_lost_in_a_narrow_format_is_told(tmp_path, capsys):
    small = {f"{NAME}.lora_{end}.weight": torch.rand(4, 4).mul(1e-5).half() for end in ("down", "up")}
    save_file(small | {f"{NAME}.alpha": torch.tensor(0.1)}, tmp_path / "small.safetensors")
    arguments = [str(tmp_path / "small.safetensors"), str(tmp_path / "x.safetensors"), "--to=native"]
    assert main(arguments) == 0
    assert "1 modules have numbers that" in capsys.readouterr().err
    assert main([*arguments, "--save_precision=float", "--overwrite"]) == 0
    assert "modules have numbers that" not in capsys.readouterr().err


def test_alpha_is_folded_on_request(lora, tmp_path):
    assert main([str(lora), str(tmp_path / "folded.safetensors"), "--to=kohya", "--fold_alpha"]) == 0
    assert sorted(load_file(tmp_path / "folded.safetensors")) == [f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"]


def test_modules_of_t5_are_left_out_with_a_warning(tmp_path, capsys):
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    save_file(factors(NAME) | factors(t5), tmp_path / "t5.safetensors")
    target = tmp_path / "x.safetensors"
    assert main([str(tmp_path / "t5.safetensors"), str(target), "--to=diffusers", "--verify_export"]) == 0
    assert len(load_file(target)) == 2
    assert "1 modules of T5 are left out" in capsys.readouterr().err
    check = [str(target), "--verify_export", f"--reference={tmp_path / 't5.safetensors'}"]
    assert main(check) == 0


def test_an_encoder_alone_is_read_as_the_family_that_is_said(tmp_path, capsys):
    save_file(factors("text_encoder.text_model.encoder.layers.0.mlp.fc1", ".lora_A.weight", ".lora_B.weight"),
              tmp_path / "clip.safetensors")  # fmt: skip
    for family, name in (("sd", CLIP.replace("te1", "te")), ("sdxl", CLIP), ("sd3", CLIP)):
        target = tmp_path / f"{family}.safetensors"
        assert main([str(tmp_path / "clip.safetensors"), str(target), "--to=kohya", f"--family={family}"]) == 0
        assert {key.split(".")[0] for key in load_file(target)} == {name}
    assert main([str(tmp_path / "clip.safetensors"), str(tmp_path / "x.safetensors"), "--to=kohya"]) == 0
    assert "--family says it" in capsys.readouterr().err


@pytest.fixture
def others(tmp_path, lora):
    """Files that cannot be converted, and what is in the way of writing."""
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>please log in</html>", encoding="utf-8")
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:-9])
    (tmp_path / "folder.safetensors").mkdir()
    nan = {key: tensor * float("nan") for key, tensor in factors(NAME).items()}
    contents = {
        "other": {"weight": torch.zeros(2)},
        "checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)},
        "nan": nan,
        "half": {f"{NAME}.lora_up.weight": torch.ones(16, 2)},
        "misfit": factors(NAME) | {f"{NAME}.lora_down.weight": torch.ones(3, 4)},
        "strange": factors("lora_unet_joint_blocks_0_x_block_nothing"),
        "loha": {f"{NAME}.hada_{end}": torch.ones(2, 2) for end in ("w1_a", "w1_b", "w2_a", "w2_b")},
        "dora": factors(NAME) | {f"{NAME}.dora_scale": torch.ones(16, 1)},
        "flux": factors("lora_unet_double_blocks_0_img_attn_qkv"),
        "sd": factors("lora_unet_down_blocks_0_attentions_0_proj_in"),
    }
    for name, content in contents.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("no", ["x.safetensors", "--to=diffusers"], "does not exist"),
        ("folder", ["x.safetensors", "--to=diffusers"], "folder"),
        ("page", ["x.safetensors", "--to=diffusers"], "web page"),
        ("cut", ["x.safetensors", "--to=diffusers"], "cut.safetensors"),
        ("other", ["x.safetensors", "--to=diffusers"], "Give a LoRA of"),
        ("checkpoint", ["x.safetensors", "--to=diffusers"], "a whole checkpoint"),
        ("flux", ["x.safetensors", "--to=diffusers"], "FLUX"),
        ("nan", ["x.safetensors", "--to=diffusers"], "NaN"),
        ("half", ["x.safetensors", "--to=diffusers"], "half.safetensors"),
        ("misfit", ["x.safetensors", "--to=diffusers"], "do not fit"),
        ("strange", ["x.safetensors", "--to=diffusers"], "no module of SD3"),
        ("strange", ["x.safetensors", "--to=native"], "no module of SD3"),
        ("loha", ["x.safetensors", "--to=diffusers"], "extract_lora_from_models.py"),
        ("dora", ["x.safetensors", "--to=diffusers"], "is a DoRA"),
        ("my lora", ["x.ckpt", "--to=diffusers"], "must end in .safetensors"),
        ("my lora", ["x.safetensors"], "--to is needed"),
        ("my lora", ["x.safetensors", "--to=kohya"], "has this form already"),
        ("my lora", ["x.safetensors", "--to=kohya", "--naming=diffusers"], "Leave --naming out"),
        ("my lora", ["x.safetensors", "--to=native", "--naming=diffusers"], "--naming is for --to kohya"),
        ("my lora", ["x.safetensors", "--to=diffusers", "--family=sdxl"], "not for SDXL"),
        ("my lora", ["x.safetensors", "--to=diffusers", "--reference=sd.safetensors"], "check without target"),
        ("my lora", ["my lora.safetensors", "--to=diffusers", "--overwrite"], "is also read"),
        ("my lora", ["sd.safetensors", "--to=diffusers"], "is there already"),
        ("my lora", ["folder.safetensors", "--to=diffusers"], "is a folder"),
        ("my lora", ["x.safetensors", "--to=difusers"], "diffusers"),
        ("my lora", [], "nothing to do"),
        ("my lora", ["--to=diffusers"], "no file to write"),
        ("my lora", ["--reference=sd.safetensors"], "--verify_export"),
        ("my lora", ["--verify_export", "--reference=sd.safetensors"], "not for SD3"),
        ("sd", ["--verify_export", "--reference=nan.safetensors"], "NaN"),
    ],
)
def test_errors_are_one_line_and_write_nothing(others, monkeypatch, capsys, source, arguments, message):
    monkeypatch.chdir(others)
    before = {path: path.stat().st_mtime_ns for path in others.iterdir()}
    assert main([f"{source}.safetensors", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert message in output.err
    assert {path: path.stat().st_mtime_ns for path in others.iterdir()} == before


def test_a_place_that_cannot_be_written_is_told(lora, others, capsys):
    assert main([str(lora), str(others / "page.safetensors" / "x.safetensors"), "--to=diffusers"]) == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_a_target_is_replaced_on_request(lora, others):
    assert main([str(lora), str(others / "sd.safetensors"), "--to=diffusers", "--overwrite"]) == 0
    assert f"{PATH}.lora_A.weight" in load_file(others / "sd.safetensors")
    assert not [name for name in os.listdir(others) if "tmp" in name]


@pytest.mark.parametrize("key", [f"{PATH}.lora_A.weight", "unet.conv_in.lora_A.weight", "text_encoder.x.lora_A.weight"])
def test_errors_about_files_of_diffusers_name_the_converter(key):
    assert "networks/convert_lora.py" in how_to_use([key])
