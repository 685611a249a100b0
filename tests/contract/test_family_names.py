"""Nothing that all families share knows one of them: their rooms name no model, and no text encoder of one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("library/training", "library/data", "library/memory", "library/checkpoint")
OPTIONS = r"\b(unet_lr|network_train_unet_only|fp8_base_unet)\b|\"v2\""  # that users name, of several families
OTHERS = r"sd-scripts|networks\.lora_sd3|lora_te2_|tag_v2"  # a trainer, a module that users name, keys of files, Pillow
NAMES = re.compile(
    r"sd[ _-]?v?[123]|sdxl|mmdit|u-?net|stable.?diffusion|clip_?text|text_encoder_[23]|(joint|input|down|context)_block"
    r"|(?<![a-z])(t5|x_block|(te[123]|flux|dit|clip[_-]?[lgh]|v2)(?![a-z]))",
    re.I,
)


def names_in(text: str) -> list[str]:
    """What of a family a source says, in code, texts and comments."""
    return [match[0] for match in NAMES.finditer(re.sub(f"{OPTIONS}|{OTHERS}", "", text))]


@pytest.mark.parametrize("room", SHARED)
def test_what_families_share_names_none_of_them(room: str):
    sources = sorted((ROOT / room).rglob("*.py"))
    assert len(sources) > 5
    found = {path.relative_to(ROOT).as_posix(): names for path in sources if (names := names_in(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        *("if family.name == 'sdxl':", "is_sdxl", "isSdxl", "SDXLTrainer", "model_sdxl_base", "# as SDXL has it"),
        *("SD3.5", "sd15", "SD 1.5", "sd_v2", "options.model.v2", "is_v2", "Stable Diffusion", "StableDiffusionXL"),
        *("the MMDiT", "MMDiTBlock", "joint_blocks", "x_blocks", "a U-Net", "UNetModel", "self.unet", "unet2d", "DiT"),
        *("--t5xxl", "T5EncoderModel", "clip_l", "CLIP-G", "CLIPTextModel", "te1", "folder / 'text_encoder_2'", "flux"),
    ],
)
def test_that_rule_finds_what_it_is_for(text: str):
    assert names_in(text)


@pytest.mark.parametrize(
    "text",
    [
        *("sd-scripts", "networks.lora_sd3", "weights_sd", "unet_lr", "network_train_unet_only", '("v2", "seed")'),
        *("clip_grad_norm_", "clipped", "clip_to", "max_block", "audit", "text_encoder_lr", "text_encoder_outputs"),
    ],
)
def test_that_rule_leaves_other_words_alone(text: str):
    assert not names_in(text)
