"""The caching tools choose the family from the model file or from the options, and start from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from library.checkpoint.metadata_copy import copy_with_metadata
from library.errors import CheckpointError, OptionError
from library.options.spec import parse_options
from library.tensorfile import read_header
from tests import tiny_unets
from tools.cache_options import LATENT_CACHING_SCRIPT, LatentCachingOptions
from tools.model_family import choose_family
from tools.preview_options import PREVIEW_SCRIPT, PreviewToolOptions

ROOT = Path(__file__).resolve().parents[3]


def options(model, *flags):
    argv = [f"--pretrained_model_name_or_path={model}", "--dataset_config=d.toml", *flags]
    return parse_options(LatentCachingOptions, argv, **LATENT_CACHING_SCRIPT)


def model_with(path, *names):
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    return path


def test_sd3_is_recognised(tiny_sd3):
    family, _ = choose_family(options(tiny_sd3, "--apply_lg_attn_mask", "--t5xxl_max_token_length=77"))
    assert (family.name, family.apply_lg_attn_mask, family.t5_length) == ("sd3", True, 77)


@pytest.mark.parametrize(("width", "name"), [(768, "sd"), (1024, "sd"), (2048, "sdxl")])
@pytest.mark.parametrize("place", ["model.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_models_with_a_unet_are_recognised(tmp_path, width, name, place):
    is_folder = place.startswith("unet")
    first = "down_blocks.0.resnets.0.time_emb_proj" if is_folder else "model.diffusion_model.input_blocks.0.0"
    (tmp_path / place).parent.mkdir(exist_ok=True)
    attention = f"{first.rpartition('.')[0]}.transformer_blocks.0.attn2.to_k.weight"
    save_file({f"{first}.weight": torch.zeros(4, 4), attention: torch.zeros(4, width)}, tmp_path / place)
    family, own = choose_family(options(tmp_path if is_folder else tmp_path / place, "--max_token_length=150"))
    assert (family.name, family.num_chunks) == (name, 2)
    assert own.warnings == ()


def test_a_model_that_predicts_the_velocity_needs_no_option_where_nothing_is_predicted(tmp_path):
    path = tmp_path / "v.safetensors"
    copy_with_metadata(
        read_header(tiny_unets.write_sd1(tmp_path / "model").path), path, {"modelspec.prediction_type": "v"}
    )
    assert choose_family(options(path))[0].inspect().marks == {"v_pred"}


def test_a_pickle_with_more_than_tensors_is_recognised_where_it_is_allowed(tmp_path):
    path = tmp_path / "model.ckpt"
    first = "model.diffusion_model.input_blocks.0.0"
    state = {f"{first}.weight": torch.zeros(4, 4)}
    state[f"{first}.transformer_blocks.0.attn2.to_k.weight"] = torch.zeros(4, 768)
    torch.save({"state_dict": state, "callback": Path}, path)
    with pytest.raises(CheckpointError, match="--allow_pickle"):
        choose_family(options(path))
    assert choose_family(options(path, "--allow_pickle"))[0].name == "sd"


def test_a_flag_is_enough_for_a_model_that_is_not_here_yet():
    assert choose_family(options("owner/model", "--sdxl"))[0].name == "sdxl"
    assert choose_family(options("owner/model-v1.5", "--sd", "--clip_skip=2"))[0].name == "sd"
    with pytest.raises(OptionError, match="owner/model is not on this machine, .* Say it with --sd or --sdxl"):
        choose_family(options("owner/model"))


@pytest.mark.parametrize(
    ("width", "title", "flag"), [(768, "a Stable Diffusion 1.x model", "sdxl"), (2048, "an SDXL model", "sd3")]
)
def test_a_flag_of_another_family_than_the_file_is_refused(tmp_path, width, title, flag):
    first = "model.diffusion_model.input_blocks.0.0"
    attention = f"{first}.transformer_blocks.0.attn2.to_k.weight"
    save_file({f"{first}.weight": torch.zeros(4, 4), attention: torch.zeros(4, width)}, tmp_path / "m.safetensors")
    with pytest.raises(OptionError) as caught:
        choose_family(options(tmp_path / "m.safetensors", f"--{flag}"))
    place = tmp_path / "m.safetensors"
    assert str(caught.value) == f"--{flag}: {place} is {title}. Leave out --{flag}: the file says what it is."


def test_checks_and_defaults_are_those_of_the_family():
    sdxl, sd = (choose_family(options("owner/model", flag))[1] for flag in ("--sdxl", "--sd"))
    assert sdxl.dataset_defaults()["resolution"] == (1024, 1024)
    assert "resolution" not in sd.dataset_defaults()
    assert sdxl.cache.caches_latents and sdxl.given == {"pretrained_model_name_or_path", "dataset_config", "sdxl"}
    with pytest.raises(OptionError, match="--v2 is for Stable Diffusion 2.x, and this is for SDXL"):
        choose_family(options("owner/model", "--sdxl", "--v2"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--sdxl", "--clip_skip=2"), "--clip_skip (SDXL always takes"),
        (("--sd", "--t5xxl_max_token_length=77"), "--t5xxl_max_token_length (for SD3 and SD3.5)"),
        (("--sd3", "--v2"), "--v2 (SD3 has one text layout)"),
    ],
)
def test_options_of_other_families_are_one_warning(flags, line):
    (warning,) = choose_family(options("owner/model", *flags))[1].warnings
    assert warning.startswith(f"Options without effect here: {line}")


def test_a_page_without_a_model_file_is_for_sd3_unless_told_otherwise():
    def chosen(*flags):
        given = parse_options(PreviewToolOptions, ["--dataset_config=d.toml", *flags], **PREVIEW_SCRIPT)
        return choose_family(given)[0].name

    assert [chosen(), chosen("--sd"), chosen("--sdxl"), chosen("--sd3")] == ["sd3", "sd", "sdxl", "sd3"]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "a FLUX model"),
        ("unet.lora_down.weight", "a LoRA or another adapter"),
        ("something.else", "no model that is known here"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, name, title):
    model = model_with(tmp_path / "model.safetensors", name)
    with pytest.raises(CheckpointError, match=f"model.safetensors is {title}"):
        choose_family(options(model))


def test_with_sd3_the_file_is_not_asked(tmp_path):
    model = model_with(tmp_path / "model.safetensors", "something.else")
    assert choose_family(options(model, "--sd3"))[0].name == "sd3"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.safetensors does not exist"):
        choose_family(options(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize("tool", ["cache_latents.py", "cache_text_encoder_outputs.py"])
def test_a_tool_starts_from_another_folder(tool, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / tool,
            "--pretrained_model_name_or_path=nowhere.safetensors",
            "--dataset_conf",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--dataset_config" in done.stderr and "Traceback" not in done.stderr
