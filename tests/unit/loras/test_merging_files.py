"""Which options and files merging refuses, and what the files are like that it writes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.errors import OptionError
from library.families.lora_layout import LoraPair
from library.loras.lora_file import lora_tensors
from library.loras.options.merging import MergeOptions, SvdOptions
from library.memory.live_memory import LiveMemory
from networks import merge_lora, sd3_merge_lora, sdxl_merge_lora, svd_merge_lora

TE1 = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
SD = "lora_unet_down_blocks_1_attentions_0_proj_in"
SDXL = "lora_unet_input_blocks_4_1_proj_in"


def drawn(seed, rank=2, out=6, inputs=(5,), scale=0.5):
    draw = torch.Generator().manual_seed(seed)
    tail = (1,) * (len(inputs) - 1)
    down, up = torch.randn(rank, *inputs, generator=draw), torch.randn(out, rank, *tail, generator=draw)
    return LoraPair(down, up, scale)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"ratios": (1.0,)}, "--ratios has 1 number for 2 files.*--ratios 1.0 1.0"),
        ({}, "--ratios is missing: the strength of each file of --models, for instance --ratios 1.0 1.0."),
        ({"ratios": (0.0, 0.0)}, "all 0, so nothing would be merged"),
        ({"ratios": (1.0, 1.0), "lbws": ("ALL",)}, "--lbws has 1 list for 2 files"),
        ({"ratios": (1.0, 1.0), "lbws": ("ALL", "1,x")}, "'1,x' is no list of numbers"),
    ],
)
def test_options_that_do_not_go_together_are_told(values, told):
    with pytest.raises(OptionError, match=told):
        MergeOptions(models=(Path("a"), Path("b")), **values)


def test_a_quantile_is_a_share():
    for wrong in (0.0, 1.5):
        with pytest.raises(OptionError, match="--clamp_quantile"):
            SvdOptions(models=(Path("a"),), ratios=(1.0,), clamp_quantile=wrong)


def write(path, modules, **more):
    save_file({k: t.contiguous() for k, t in (lora_tensors(modules, "sd") | more).items()}, path)
    return str(path)


def refused(script, capsys, *arguments, code=2):
    capsys.readouterr()
    assert script.main([str(argument) for argument in arguments]) == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_wrong_files_are_refused_in_one_sentence_and_nothing_is_written(tmp_path, capsys):
    sd = write(tmp_path / "sd.safetensors", {SD: drawn(0)})
    sdxl = write(tmp_path / "sdxl.safetensors", {SDXL: drawn(0)})
    wide = write(tmp_path / "wide.safetensors", {SD: drawn(0, inputs=(9,))})
    dora = write(tmp_path / "dora.safetensors", {SD: drawn(0)}, **{f"{SD}.dora_scale": torch.ones(6, 1)})
    model = write(
        tmp_path / "model.safetensors", {}, **{"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4)}
    )
    oft = write(tmp_path / "oft.safetensors", {}, **{"oft_unet_mid_block_x.oft_blocks": torch.ones(2, 3, 3)})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(sd).read_bytes()[:-7])
    target = tmp_path / "out.safetensors"
    cases = [
        (merge_lora, (sd, sdxl), "Merge LoRAs of one family"),
        (merge_lora, (sd, wide), f"{SD} is 6 x 5 in"),
        (merge_lora, (sd, dora), "is a DoRA"),
        (merge_lora, (sd, model), "is a whole checkpoint"),
        (merge_lora, (sd, oft), "is an OFT network, which turns weights"),
        (merge_lora, (sd, cut), "is truncated"),
        (merge_lora, (sd, tmp_path / "sdd.safetensors"), "does not exist"),
        (merge_lora, (sd, tmp_path), "is a folder"),
        (sdxl_merge_lora, (sd, sd), "is a LoRA for SD1 or SD2, not for SDXL"),
        (sd3_merge_lora, (sd, sd), "is a LoRA for SD1 or SD2, not for SD3"),
        (svd_merge_lora, (sd, sdxl), "Merge LoRAs of one family"),
    ]
    for script, models, words in cases:
        told = refused(script, capsys, "--models", *models, "--ratios", 1, 1, "--save_to", target)
        assert words in told and told.count("\n") == 1, (models, told)
    assert not target.exists()
    assert "also read" in refused(merge_lora, capsys, "--models", sd, "--ratios", 1, "--save_to", sd)
    assert "must end in" in refused(merge_lora, capsys, "--models", sd, "--ratios", 1, "--save_to", tmp_path / "x.bin")


@pytest.mark.parametrize("script", [merge_lora, svd_merge_lora])
def test_files_that_take_each_other_away_are_refused(script, tmp_path, capsys):
    sd = write(tmp_path / "sd.safetensors", {SD: drawn(0)})
    target = tmp_path / "out.safetensors"
    told = refused(script, capsys, "--models", sd, sd, "--ratios", 0.7, -0.7, "--save_to", target)
    assert "take each other away" in told and not target.exists()


def test_models_that_are_none_are_refused(tmp_path, capsys):
    sd = write(tmp_path / "sd.safetensors", {SD: drawn(0)})
    rest = ("--models", sd, "--ratios", 1, "--save_to", tmp_path / "out.safetensors")
    told = refused(merge_lora, capsys, "--sd_model", sd, *rest)
    assert "--sd_model" in told and "also" not in told and "LoRA" in told
    assert "is a folder" in refused(merge_lora, capsys, "--sd_model", tmp_path, *rest)
    assert "does not exist" in refused(merge_lora, capsys, "--sd_model", tmp_path / "none.safetensors", *rest)


def test_a_number_that_a_precision_cannot_hold_is_refused(tmp_path, capsys):
    sd = write(tmp_path / "sd.safetensors", {SD: LoraPair(torch.full((1, 5), 1e5), torch.ones(6, 1), 1.0)})
    rest = ("--ratios", 1, "--save_to", tmp_path / "out.safetensors", "--save_precision", "fp16")
    told = refused(merge_lora, capsys, "--models", sd, *rest, code=5)
    assert "float16 cannot hold" in told and not (tmp_path / "out.safetensors").exists()


def test_the_result_has_the_layout_of_all_files_or_that_of_kohya(tmp_path):
    for name, layout in (("a", "diffusers"), ("b", "diffusers"), ("c", "kohya")):
        save_file(
            {k: t.contiguous() for k, t in lora_tensors({SD: drawn(0)}, "sd", layout=layout).items()}, tmp_path / name
        )
    for names, start in (("ab", "unet.down_blocks.1."), ("ac", "lora_unet_"), ("ca", "lora_unet_")):
        options = ["--models", *(str(tmp_path / name) for name in names), "--ratios", "1", "0.5"]
        assert merge_lora.main([*options, "--save_to", str(tmp_path / "out.safetensors")]) == 0
        assert all(key.startswith(start) for key in load_file(tmp_path / "out.safetensors"))


def test_a_model_is_never_in_memory_as_a_whole(tmp_path):
    layers = {
        f"model.diffusion_model.input_blocks.{i}.1.proj_in.weight": torch.randn(256, 256) for i in (1, 2, 4, 5, 7, 8)
    }
    marks = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}
    others = {f"first_stage_model.{i}.weight": torch.randn(256, 256) for i in range(20)}
    save_file(layers | marks | others, tmp_path / "model.safetensors")
    names = {
        f"lora_unet_down_blocks_{i}_attentions_{j}_proj_in": drawn(i, out=256, inputs=(256,))
        for i in range(3)
        for j in (0, 1)
    }
    lora = write(tmp_path / "lora.safetensors", names)
    rest = ["--ratios", "1", "--save_to", str(tmp_path / "out.safetensors")]
    with LiveMemory([]) as memory:
        assert merge_lora.main(["--sd_model", str(tmp_path / "model.safetensors"), "--models", lora, *rest]) == 0
    one = 4 * 256 * 256
    assert len(load_file(tmp_path / "out.safetensors")) == 27
    assert one < memory.peak < 6 * one + Path(lora).stat().st_size


def test_encoders_alone_go_with_the_family_of_the_other_file(tmp_path):
    te = write(tmp_path / "te.safetensors", {TE1: drawn(0)})
    sd3 = write(tmp_path / "sd3.safetensors", {"lora_unet_joint_blocks_0_x_block_attn_proj": drawn(1)})
    target = tmp_path / "out.safetensors"
    options = ["--models", te, sd3, "--ratios", "1", "0.5", "--save_to", str(target)]
    assert merge_lora.main(options) == 0
    with safe_open(target, "pt") as file:
        assert file.metadata()["modelspec.architecture"].startswith("stable-diffusion-3")
    assert {key.split(".")[0] for key in load_file(target)} == {TE1, "lora_unet_joint_blocks_0_x_block_attn_proj"}
