"""The caching tools choose the family from the model file or from the options, and start from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from library.errors import CheckpointError
from library.options.spec import parse_options
from tools.cache_options import LATENT_CACHING_SCRIPT, LatentCachingOptions
from tools.model_family import choose_family

ROOT = Path(__file__).resolve().parents[3]


def options(model, *flags):
    argv = [f"--pretrained_model_name_or_path={model}", "--dataset_config=d.toml", *flags]
    return parse_options(LatentCachingOptions, argv, **LATENT_CACHING_SCRIPT)


def model_with(path, *names):
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    return path


def test_sd3_is_recognised(tiny_sd3):
    family = choose_family(options(tiny_sd3, "--apply_lg_attn_mask", "--t5xxl_max_token_length=77"))
    assert (family.name, family.apply_lg_attn_mask, family.t5_length) == ("sd3", True, 77)


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
    assert choose_family(options(model, "--sd3")).name == "sd3"


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
