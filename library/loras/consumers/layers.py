"""Names of the layers that a LoRA can change, as the models have them, without a model at hand.

Tables for models of the published form; of the number of blocks as much as a file tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from library.families.sd3.key_map import ModulePair, mmdit_modules
from library.unet_names import to_published

Shapes = Mapping[str, Sequence[int]]

_BLOCK = re.compile(r"(?:joint|transformer)_blocks[._](\d+)[._]")
_INNER = re.compile(r"transformer_blocks[._](\d+)[._]")
_CONTEXT_MODULATION = re.compile(r"context_block[._]adaLN_modulation[._]1\.|norm1_context[._]linear\.")
_MOST_BLOCKS = 512
_HEAD = 64  # width of the MMDiT for each of its blocks
_LEVELS = {"sd": 4, "sdxl": 3}
_ATTENTIVE = {"sd": (0, 1, 2), "sdxl": (1, 2)}  # levels on the way down
_RESNET = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
_INSIDE = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
_ATTENTION = (*_INSIDE, *(name.replace("attn1", "attn2") for name in _INSIDE if name.startswith("attn1")))
_CLIP = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
_T5 = (
    *(f"0.SelfAttention.{name}" for name in ("q", "k", "v", "o")),
    *(f"1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
)
_MOST_CLIP_LAYERS, _T5_BLOCKS = 32, 24
ENCODERS: Mapping[str, Mapping[str, str]] = {
    "sd": {"lora_te_": "text_encoder."},
    "sdxl": {"lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2."},
    "sd3": {"lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2.", "lora_te3_": "text_encoder_3."},
}
"""{family: {prefix of an encoder's modules in kohya files: its folder in diffusers, with a point}}"""


@dataclass(frozen=True)
class Layers:
    """What a model has.

    Attributes:
        family: "sd", "sdxl" or "sd3".
        denoiser: Its layers under both names.
        clip: Names of the layers inside a CLIP, as transformers has them.
        t5: The same of T5.
    """

    family: str
    denoiser: tuple[ModulePair, ...]
    clip: tuple[str, ...]
    t5: tuple[str, ...]


def layers_of(family: str, shapes: Shapes, depth: int | None = None) -> Layers:
    """The layers of the model that a file is for.

    Args:
        family: "sd", "sdxl" or "sd3".
        shapes: Of the file.
        depth: Number of blocks of an MMDiT; None takes what the file tells.
    """
    clip = tuple(f"text_model.encoder.layers.{i}.{name}" for i in range(_MOST_CLIP_LAYERS) for name in _CLIP)
    t5 = tuple(f"encoder.block.{i}.layer.{name}" for i in range(_T5_BLOCKS) for name in _T5)
    if family == "sd3":
        return Layers(family, mmdit_modules(mmdit_depth(shapes) if depth is None else depth), clip, t5)
    repeats = 1 + max((int(index) for name in shapes for index in _INNER.findall(name)), default=0)
    names = list(_unet_names(family, min(repeats, _MOST_BLOCKS)))
    published = to_published(names)
    return Layers(family, tuple(ModulePair(published[name], (name,)) for name in names), clip, ())


def mmdit_depth(shapes: Shapes) -> int:
    """Blocks of the MMDiT that a file is for: published ones have one for each 64 channels; at least those named.

    The modulation of the last block's context has two vectors, that of others has six.
    """
    depth, widths = 0, []
    for name, shape in shapes.items():
        match = _BLOCK.search(name)
        if match is None or len(shape) < 2:
            continue
        depth = max(depth, int(match[1]) + 1)
        if "down" in name or "lora_A" in name:
            widths.append(shape[1])
        elif _CONTEXT_MODULATION.search(name) and _is_before_last(name, shape, shapes):
            depth = max(depth, int(match[1]) + 2)
    return min(max(depth, min(widths, default=0) // _HEAD), _MOST_BLOCKS)


def _is_before_last(name: str, shape: Sequence[int], shapes: Shapes) -> bool:
    down = shapes.get(name.replace("lora_up", "lora_down").replace("lora_B", "lora_A").replace("lora.up", "lora.down"))
    return down is not None and len(down) > 1 and shape[0] > 2 * down[1]


def _unet_names(family: str, repeats: int) -> Iterator[str]:
    """Names in diffusers of the layers of a U-Net whose attention has up to so many transformer blocks in a place."""
    num_levels, attentive = _LEVELS[family], _ATTENTIVE[family]
    embeddings = ("time_embedding", "add_embedding") if family == "sdxl" else ("time_embedding",)
    yield from (f"{name}.linear_{index}" for name in embeddings for index in (1, 2))
    yield from ("conv_in", "conv_out")
    yield from _level("mid_block", 2, 1, repeats)
    for level in range(num_levels):
        yield from _level(f"down_blocks.{level}", 2, 2 * (level in attentive), repeats)
        yield from _level(f"up_blocks.{level}", 3, 3 * (num_levels - 1 - level in attentive), repeats)
        if level < num_levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv"
            yield f"up_blocks.{level}.upsamplers.0.conv"


def _level(level: str, num_resnets: int, num_attentions: int, repeats: int) -> Iterator[str]:
    yield from (f"{level}.resnets.{index}.{name}" for index in range(num_resnets) for name in _RESNET)
    for attention in (f"{level}.attentions.{index}" for index in range(num_attentions)):
        yield from (f"{attention}.proj_in", f"{attention}.proj_out")
        yield from (f"{attention}.transformer_blocks.{i}.{name}" for i in range(repeats) for name in _ATTENTION)
