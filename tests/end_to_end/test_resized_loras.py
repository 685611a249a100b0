"""LoRAs made smaller, cut and looked at, by the scripts that users call."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from library.families.sd3.lora_format import diffusers_to_kohya, kohya_to_diffusers
from library.tensorfile import read_header
from networks import check_lora_weights, extract_lora_from_dylora, resize_lora
from networks.weights import factors_by_name

DATA = Path(__file__).parent.parent / "golden" / "data"


def golden(name):
    return load(gzip.decompress((DATA / f"{name}.safetensors.gz").read_bytes()))


@pytest.fixture
def lora_file(tmp_path):
    metadata = {"ss_network_dim": "8", "ss_training_comment": "mine", "ss_tag_frequency": "{}", "sshs_model_hash": "0"}
    save_file(golden("lora_sd3_file"), tmp_path / "lora.safetensors", metadata)
    return tmp_path / "lora.safetensors"


def resize(source, target, *flags):
    return resize_lora.main(["--model", str(source), "--save_to", str(target), *flags])


def deltas(tensors):
    return {name: values.delta() for name, values in factors_by_name(tensors, "file").items()}


def test_the_whole_rank_is_the_same_lora(lora_file, tmp_path, capsys):
    assert resize(lora_file, tmp_path / "same.safetensors", "--new_rank=64") == 0
    old, new = load_file(lora_file), load_file(tmp_path / "same.safetensors")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    log = capsys.readouterr().err
    assert "have a lower rank than asked for" in log and "norm retained: 100.00%" in log


def test_a_smaller_rank_is_written_with_what_it_says_of_itself(lora_file, tmp_path, capsys):
    target = tmp_path / "small.safetensors"
    assert resize(lora_file, target, "--new_rank=2", "--verbose") == 0
    factors = factors_by_name(load_file(target), "small")
    old = factors_by_name(load_file(lora_file), "lora")
    assert {name: values.rank for name, values in factors.items()} == {n: min(v.rank, 2) for n, v in old.items()}
    metadata = read_header(target).metadata
    assert metadata["ss_training_comment"] == "dimension is resized from 2-6 to 2; mine"
    assert metadata["ss_tag_frequency"] == "{}" and len(metadata["sshs_model_hash"]) == 64
    log = capsys.readouterr().err
    whole, kept = (
        float(torch.stack([delta.norm() for delta in deltas(load_file(path)).values()]).norm())
        for path in (lora_file, target)
    )
    assert f"{kept / whole:.2%} of all" in log and "MiB" in log
    assert all(name in log for name in factors)


def convolutions(tmp_path):
    """A LoRA of rank 4 in a linear layer and in a convolution."""
    draw = torch.Generator().manual_seed(0)
    names = ("lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_resnets_0_conv1")
    tensors = {}
    for name, ones, kernel in zip(names, ((), (1, 1)), ((), (3, 3)), strict=True):
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, 8, *kernel, generator=draw)
        tensors[f"{name}.lora_up.weight"] = torch.randn(8, 4, *ones, generator=draw)
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, tmp_path / "conv.safetensors", {"ss_network_dim": "4", "ss_training_comment": "mine"})
    return tmp_path / "conv.safetensors"


@pytest.mark.parametrize(
    ("flags", "comment", "dim"),
    [
        (("--new_rank=8",), "mine", "4"),
        (("--new_rank=2",), "dimension is resized from 4 to 2; mine", "2"),
        (("--new_rank=2", "--new_conv_rank=1"), "dimension is resized from 4 to 1-2; mine", "Dynamic"),
    ],
)
def test_the_metadata_tells_the_ranks_that_came_out(flags, comment, dim, tmp_path):
    target = tmp_path / "small.safetensors"
    assert resize(convolutions(tmp_path), target, *flags) == 0
    metadata = read_header(target).metadata
    assert metadata["ss_training_comment"] == comment
    assert metadata["ss_network_dim"] == dim and "modelspec.merged_from" not in metadata


def test_a_lora_in_fp8_is_resized_and_looked_at(tmp_path, capsys):
    whole = load_file(convolutions(tmp_path))
    rounded = {name: t.to(torch.float8_e4m3fn) if t.dim() else t for name, t in whole.items()}
    save_file(rounded, tmp_path / "fp8.safetensors")
    assert check_lora_weights.main([str(tmp_path / "fp8.safetensors")]) == 0
    assert "whole: Frobenius norm" in capsys.readouterr().err
    assert resize(tmp_path / "fp8.safetensors", tmp_path / "small.safetensors", "--new_rank=4") == 0
    expected = deltas({name: tensor.float() for name, tensor in rounded.items()})
    for name, delta in deltas(load_file(tmp_path / "small.safetensors")).items():
        torch.testing.assert_close(delta, expected[name], atol=1e-3, rtol=1e-3)


def test_the_number_format_stays_or_is_that_asked_for(lora_file, tmp_path):
    for flags, dtype in (((), torch.float32), (("--save_precision=bf16",), torch.bfloat16)):
        assert resize(lora_file, tmp_path / "small.safetensors", "--new_rank=2", *flags) == 0
        tensors = load_file(tmp_path / "small.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.dim()} == {dtype}


@pytest.mark.parametrize(("method", "param"), [("sv_ratio", 3.0), ("sv_fro", 0.8), ("sv_cumulative", 0.6)])
def test_dynamic_ranks_follow_the_singular_values_of_the_whole_matrices(method, param, lora_file, tmp_path):
    target = tmp_path / "dynamic.safetensors"
    assert resize(lora_file, target, "--new_rank=99", f"--dynamic_method={method}", f"--dynamic_param={param}") == 0
    new = factors_by_name(load_file(target), "dynamic")
    for name, delta in deltas(load_file(lora_file)).items():
        s = torch.linalg.svdvals(delta.flatten(1).double())
        power = {"sv_fro": 2, "sv_cumulative": 1}.get(method)
        if power is None:
            expected = int((s > s[0] / param).sum())
        else:
            shares = (s**power).cumsum(0) / (s**power).sum()
            expected = int((shares < param**power).sum()) + 1
        assert new[name].rank == expected, name
    assert read_header(target).metadata["ss_network_dim"] == "Dynamic"


def test_the_layout_of_diffusers_stays(lora_file, tmp_path):
    source, target = tmp_path / "peft.safetensors", tmp_path / "small.safetensors"
    peft = kohya_to_diffusers(load_file(lora_file)).tensors
    save_file({name: tensor.contiguous().clone() for name, tensor in peft.items()}, source)
    assert resize(source, target, "--new_rank=2") == 0
    assert resize(lora_file, tmp_path / "kohya.safetensors", "--new_rank=2") == 0
    new = load_file(target)
    assert new.keys() == peft.keys()
    back, expected = deltas(diffusers_to_kohya(new).tensors), deltas(load_file(tmp_path / "kohya.safetensors"))
    for name, delta in back.items():
        torch.testing.assert_close(delta, expected[name], atol=1e-5, rtol=1e-4)


def broken(lora_file, how):
    tensors = load_file(lora_file)
    if how == "nan":
        tensors[next(name for name in tensors if "lora_up" in name)].fill_(float("nan"))
    elif how == "half":
        del tensors[next(name for name in tensors if "lora_down" in name)]
    path = lora_file.with_name(f"{how}.safetensors")
    save_file(tensors, path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-99])
    return path


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dynamic_method=sv_fro",), "needs --dynamic_param"),
        (("--dynamic_param=0.5",), "only for --dynamic_method"),
        (("--dynamic_method=sv_fro", "--dynamic_param=3"), "at most 1"),
        (("--dynamic_method=sv_ratio", "--dynamic_param=0.5"), "1 or more"),
        (("--new_rank=0",), "--new_rank"),
        (("--new_ranks=4",), "--new_rank"),
        (("--device=gpu7",), "there is no such device"),
        (("--save_to=lora.bin",), "must end in"),
    ],
)
def test_wrong_options_are_one_sentence(flags, words, lora_file, tmp_path, capsys):
    assert resize(lora_file, tmp_path / "out.safetensors", *flags) in (2, 3)
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("half", "has one of its two factors only"),
        ("nan", "NaN"),
        ("cut", "--model"),
        ("missing", "missing.safetensors"),
        ("folder", "folder"),
        ("model", "a whole checkpoint"),
        ("same", "is also read"),
    ],
)
def test_wrong_files_are_one_sentence(how, words, lora_file, tmp_path, tiny_sd3, capsys):
    source, target = tmp_path / "missing.safetensors", tmp_path / "out.safetensors"
    if how in ("nan", "cut", "half"):
        source = broken(lora_file, how)
    elif how == "folder":
        source = tmp_path / "folder"
        source.mkdir()
    elif how == "model":
        source = tiny_sd3
    elif how == "same":
        source = target = lora_file
    before = lora_file.read_bytes()
    assert resize(source, target) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert lora_file.read_bytes() == before and not (tmp_path / "out.safetensors").exists()


# ---------------------------------------------------------------- DyLoRA


def dylora(tmp_path, **ours):
    """Arguments that cut a DyLoRA of rank 8, and its tensors."""
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.randn(8, 5, generator=draw),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.randn(6, 8, generator=draw),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(4.0),
    }
    metadata = {"ss_network_module": "networks.dylora", "ss_network_args": json.dumps({"unit": "2"}), **ours}
    save_file(tensors, tmp_path / "dy.safetensors", metadata)
    arguments = ["--model", str(tmp_path / "dy.safetensors"), "--save_to", str(tmp_path / "cut.safetensors")]
    return arguments, tensors


EASEL = {"modelspec.implementation_version": "easel/0.1.0"}


def test_a_dylora_is_cut_into_files_of_its_ranks(tmp_path, capsys):
    arguments, tensors = dylora(tmp_path, **EASEL)
    assert extract_lora_from_dylora.main([*arguments, "--unit=3"]) == 0
    assert "no multiple of 2" in (log := capsys.readouterr().err) and "Easel" not in log
    assert sorted(path.name for path in tmp_path.glob("cut*")) == ["cut-000003.safetensors", "cut-000006.safetensors"]
    cut = load_file(tmp_path / "cut-000006.safetensors")
    (values,) = factors_by_name(cut, "cut").values()
    assert torch.equal(values.down, next(iter(tensors.values()))[:6])
    assert values.scale == pytest.approx(0.5)
    metadata = read_header(tmp_path / "cut-000006.safetensors").metadata
    assert metadata["ss_network_dim"] == "6" and metadata["ss_network_module"] == "networks.lora"
    assert extract_lora_from_dylora.main([*arguments, "--unit=8"]) == 2
    assert "nothing to cut" in capsys.readouterr().err


def test_a_dylora_of_another_trainer_is_cut_with_a_warning(tmp_path, capsys):
    assert extract_lora_from_dylora.main([*dylora(tmp_path)[0], "--unit=4"]) == 0
    assert "does not say that Easel has trained it" in capsys.readouterr().err


def test_no_file_is_replaced_by_a_cut(tmp_path, capsys):
    (tmp_path / "cut-000004.safetensors").write_bytes(b"precious")
    assert extract_lora_from_dylora.main([*dylora(tmp_path, **EASEL)[0], "--unit=2"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.glob("cut*")] == [b"precious"]


def test_all_cuts_are_written_or_none(tmp_path, capsys):
    arguments, tensors = dylora(tmp_path, **EASEL)
    up = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[up][:, 4:6] *= 1e6  # more than fp16 holds, in the last file only
    save_file(tensors, tmp_path / "dy.safetensors", {"ss_network_module": "networks.dylora"})
    assert extract_lora_from_dylora.main([*arguments, "--unit=2", "--save_precision=fp16"]) == 2
    assert "too large" in capsys.readouterr().err
    assert not list(tmp_path.glob("cut*"))


def test_only_a_dylora_is_cut(lora_file, tmp_path, capsys):
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(lora_file), plain, {"ss_network_module": "networks.lora_sd3"})
    arguments = ["--model", str(plain), "--save_to", str(tmp_path / "cut.safetensors"), "--unit=1"]
    assert extract_lora_from_dylora.main(arguments) == 2
    assert "networks/resize_lora.py" in capsys.readouterr().err
    assert not list(tmp_path.glob("cut*"))


# ---------------------------------------------------------------- looking


def test_a_file_is_described(lora_file, capsys):
    assert check_lora_weights.main([str(lora_file)]) == 0
    log = capsys.readouterr().err
    tensors = load_file(lora_file)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    shape, sizes = "x".join(map(str, tensors[name].shape)), tensors[name].float().abs()
    assert f"{name}, {shape}, mean |w| {sizes.mean():.4g}, min |w| {sizes.min():.4g}" in log
    whole = torch.stack([delta.norm() for delta in deltas(tensors).values()]).norm()
    assert f"whole: Frobenius norm {whole:.4g}" in log
    assert "a LoRA for SD3" in log and "kohya" in log and ".alpha," not in log
    assert check_lora_weights.main([str(lora_file), "-s"]) == 0
    assert ".alpha, one number" in capsys.readouterr().err


def test_broken_numbers_are_exit_code_2(lora_file, capsys):
    assert check_lora_weights.main([str(broken(lora_file, "nan"))]) == 2
    assert "1 of" in capsys.readouterr().err.strip().splitlines()[-1]


def test_modules_that_were_not_trained_are_told(lora_file, tmp_path, capsys):
    tensors = load_file(lora_file)
    for name in tensors:
        if name.endswith("lora_up.weight"):
            tensors[name].zero_()
    save_file(tensors, tmp_path / "zero.safetensors")
    assert check_lora_weights.main([str(tmp_path / "zero.safetensors")]) == 0
    assert "modules add nothing" in capsys.readouterr().err


def test_a_model_is_no_lora(tiny_sd3, tmp_path, capsys):
    shutil.copy(tiny_sd3, tmp_path / "model.safetensors")
    assert check_lora_weights.main([str(tmp_path / "model.safetensors")]) == 2
    assert "a whole checkpoint" in capsys.readouterr().err
