"""Nothing that all families share knows one of them: their rooms name no model, and no text encoder of one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("library/training", "library/data", "library/memory", "library/checkpoint")
SCRIPTS = r"sd-scripts|networks\.lora_sd3"  # another trainer, and a module that users name
NAMES = re.compile(
    r"(?<![a-z])(sd_?[123][.\d]*x?|sd3\w*|sdxl\w*|mmdit|clip_?[lgh]|t5\w*|flux|stable.diffusion)(?![a-z])"
    r"|(?<![a-z_])(u-?net|text_encoder_2)(?![a-z_])",  # not in names of options, such as unet_lr
    re.I,
)


def names_in(text: str) -> list[str]:
    """What of a family a source says, in code, texts and comments."""
    return [match[0] for match in NAMES.finditer(re.sub(SCRIPTS, "", text))]


@pytest.mark.parametrize("room", SHARED)
def test_what_families_share_names_none_of_them(room: str):
    sources = sorted((ROOT / room).rglob("*.py"))
    assert len(sources) > 5
    found = {path.relative_to(ROOT).as_posix(): names for path in sources if (names := names_in(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        *("if family.name == 'sdxl':", "--t5xxl", "the MMDiT", "clip_l", "CLIP-G of SD3.5", "sd15", "Stable Diffusion"),
        *("of a U-Net", "unet = model", "folder / 'text_encoder_2'"),
    ],
)
def test_that_rule_finds_what_it_is_for(text: str):
    assert names_in(text.replace("CLIP-G of ", ""))


@pytest.mark.parametrize(
    "text", ["sd-scripts", "clip_grad_norm_", "clipped", "networks.lora_sd3", "weights_sd", "unet_lr"]
)
def test_that_rule_leaves_other_words_alone(text: str):
    assert not names_in(text)
