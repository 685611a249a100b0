"""A1111 1.10: of SD3 models only the first, SD3-medium, and of these the denoiser only.

Where a model has a table of names in diffusers, as SD3 has, keys are split at their last two points; an alpha has one,
and the whole file is refused.
"""

from __future__ import annotations

from dataclasses import replace

from library.loras.consumers.layers import Layers
from library.loras.consumers.rules import (
    Content,
    Place,
    Reading,
    diffusers_names,
    encoder_names,
    published_names,
    read_known,
)

_NUM_ENDS = 3  # lora_up, lora.up, lora_B
_SD3_NAMES = (".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0")
_KOHYA = ("lora_unet_", "lora_te")
_LATER, _LATER_BLOCK = "attn2", "joint_blocks.24."  # what SD3-medium does not have


def read(content: Content) -> Reading:
    """See the module."""
    layers = content.layers
    if layers.family != "sd3":
        known = published_names(layers) | encoder_names(layers) | _layers_in_blocks(layers)
        return read_known(content, known, num_ends=_NUM_ENDS)
    has_later = any(_LATER in name for name in content.modules())
    if has_later or any(layer.published.startswith(_LATER_BLOCK) for layer in layers.denoiser):
        return Reading(refusal="knows no SD3.5", has_way_out=False)
    if content.has_alpha():
        return Reading(refusal="refuses SD3 files with alpha tensors")
    in_diffusers = diffusers_names(layers, "transformer.")
    known = published_names(layers) | {name: in_diffusers[name] for name in in_diffusers if name.endswith(_SD3_NAMES)}
    reading = read_known(content, known, num_ends=_NUM_ENDS)
    is_kohya = any(name.startswith(_KOHYA) for name in content.modules())
    return replace(reading, has_way_out=not is_kohya)


def _layers_in_blocks(layers: Layers) -> dict[str, Place]:
    """What its table from diffusers to published names has: attention, resnets, and what changes the size."""
    names = diffusers_names(layers, "lora_unet_")
    return {name: place for name, place in names.items() if "_blocks_" in name or "mid_block" in name}
