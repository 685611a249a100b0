"""Which family and which layout a LoRA file is of, told from names and shapes in its header; no torch."""

from __future__ import annotations

from collections.abc import Mapping

from networks.weights import describe_file

KOHYA, DIFFUSERS = "kohya", "diffusers"
FAMILY_TITLES = {"sd": "SD1 or SD2", "sdxl": "SDXL", "sd3": "SD3"}
"""How a sentence calls the models of a family."""

Shapes = Mapping[str, tuple[int, ...]]

_DIFFUSERS_STARTS = ("transformer.", "unet.", "text_encoder.", "text_encoder_2.")
_FACTORS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.")
_SDXL_CONTEXT = 2048


def layout_of(shapes: Shapes) -> str:
    """ "kohya", or "diffusers" (PEFT)."""
    return DIFFUSERS if any(name.startswith(_DIFFUSERS_STARTS) for name in shapes) else KOHYA


def family_of(shapes: Shapes) -> str | None:
    """ "sd" (SD1 and SD2 have the same names), "sdxl" or "sd3"; None where it is no LoRA of these.

    A file for text encoders only, of which SDXL and SD3 name two alike, counts as SDXL unless it has T5.
    """
    names = list(shapes)
    if not any(mark in name for name in names for mark in _FACTORS):
        return None
    if any(_is_sd3(name) for name in names):
        return "sd3"
    if any("double_blocks" in name or "single_transformer_blocks" in name for name in names):
        return None
    if any(_is_sdxl(name, shapes[name]) for name in names):
        return "sdxl"
    starts = ("lora_unet_", "lora_te_", "unet.", "text_encoder.")
    return "sd" if any(name.startswith(starts) for name in names) else None


def title_of(shapes: Shapes) -> str:
    """What a file is, for instance "a LoRA for SDXL" or "a whole checkpoint"."""
    family = family_of(shapes)
    return describe_file(shapes) if family is None else f"a LoRA for {FAMILY_TITLES[family]}"


def _is_sd3(name: str) -> bool:
    marks = ("joint_blocks_", "lora_te3_", "lora_unet_context_embedder", "lora_unet_x_embedder")
    more = ("lora_unet_t_embedder", "lora_unet_y_embedder", "lora_unet_final_layer")
    return any(mark in name for mark in (*marks, *more)) or name.startswith("transformer.") and "single_" not in name


def _is_sdxl(name: str, shape: tuple[int, ...]) -> bool:
    if name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")):
        return True
    if any(mark in name for mark in ("input_blocks_", "output_blocks_", "middle_block_", "label_emb", "add_embedding")):
        return True
    if "transformer_blocks_1_" in name or "transformer_blocks.1." in name:
        return True  # the others have one in each place
    is_context = "attn2_to_k.lora_down" in name or "attn2.to_k.lora_A" in name
    return is_context and len(shape) > 1 and shape[1] == _SDXL_CONTEXT
