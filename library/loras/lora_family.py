"""Which family and which layout a LoRA file is of, told from names and shapes in its header; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from library.loras.lora_spellings import plain_key
from networks.weights import describe_file

KOHYA, DIFFUSERS = "kohya", "diffusers"
FAMILY_TITLES = {"sd": "SD1 or SD2", "sdxl": "SDXL", "sd3": "SD3"}
"""How a sentence calls the models of a family."""

Shapes = Mapping[str, tuple[int, ...]]

_DIFFUSERS_STARTS = ("transformer.", "unet.", "text_encoder.", "text_encoder_2.")
_FACTORS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.")
_SDXL_CONTEXT, _SD_CONTEXTS = 2048, (768, 1024)
_LATE_BLOCK = re.compile(r"(?:in|out)put_blocks_(?:9|1[01])_")  # SDXL has nine
_ENCODERS = {  # where a file has modules of text encoders only: the families that name them so, the likeliest first
    ("lora_te1_", "lora_te2_", "text_encoder_2."): ("sdxl", "sd3"),
    ("text_encoder.",): ("sd", "sdxl", "sd3"),
    ("lora_te_",): ("sd",),
}
_OTHERS = (  # ends or parts of names, and what such a file is
    ((".dora_scale", ".lora_magnitude_vector"), "a DoRA"),
    ((".hada_",), "a LoHa (LyCORIS)"),
    ((".lokr_",), "a LoKr (LyCORIS)"),
    ((".oft_blocks", ".oft_diag", ".oft_R."), "an OFT network"),
    ((".diff", ".diff_b", ".w_norm", ".b_norm", ".on_input"), "a file of whole changes of weights (LyCORIS)"),
)


def layout_of(shapes: Shapes) -> str:
    """ "kohya", or "diffusers" (PEFT)."""
    return DIFFUSERS if any(plain_key(name).startswith(_DIFFUSERS_STARTS) for name in shapes) else KOHYA


def family_of(shapes: Shapes) -> str | None:
    """ "sd" (SD1 and SD2 have the same names), "sdxl" or "sd3"; None where it is no LoRA of these.

    Of a file for text encoders only it is the likeliest of `families_of`.
    """
    return next(iter(families_of(shapes)), None)


def families_of(shapes: Shapes) -> tuple[str, ...]:
    """Those that a file may be for, the likeliest first: several where it has modules of text encoders only."""
    own = {plain_key(name): shape for name, shape in shapes.items()}
    if not any(mark in name for name in own for mark in _FACTORS):
        return ()
    if any(_is_sd3(name) for name in own):
        return ("sd3",)
    if any("double_blocks" in name or "single_transformer_blocks" in name for name in own):
        return ()
    if all(name.startswith(("lora_te", "text_encoder")) for name in own):
        starts = (families for starts, families in _ENCODERS.items() if any(name.startswith(starts) for name in own))
        return next(starts, ())
    if any(_is_sdxl(name, shape) for name, shape in own.items()) and not any(map(_is_sd, own, own.values())):
        return ("sdxl",)
    return ("sd",) if any(name.startswith(("lora_unet_", "unet.")) for name in own) else ()


def other_adapter(shapes: Shapes) -> str | None:
    """What a file is that has something else than the two factors of LoRA, for instance "a DoRA"; else None."""
    ends = {name.removesuffix(".weight") for name in shapes}
    for parts, title in _OTHERS:
        if any(part in name if part.endswith(("_", ".")) else name.endswith(part) for name in ends for part in parts):
            return title
    return None


def title_of(shapes: Shapes) -> str:
    """What a file is, for instance "a LoRA for SDXL" or "a whole checkpoint"."""
    if other := other_adapter(shapes):
        return other
    families = families_of(shapes)
    family = " or ".join(FAMILY_TITLES[name] for name in families)
    return f"a LoRA for {family}" if families else describe_file(shapes)


def _is_sd3(name: str) -> bool:
    marks = ("joint_blocks_", "lora_te3_", "lora_unet_context_embedder", "lora_unet_x_embedder")
    more = ("lora_unet_t_embedder", "lora_unet_y_embedder", "lora_unet_final_layer")
    return any(mark in name for mark in (*marks, *more)) or (name.startswith("transformer.") and "single_" not in name)


def _is_sd(name: str, shape: tuple[int, ...]) -> bool:
    """What SDXL does not have, where layers have published names as in SDXL."""
    if name.startswith("lora_te_") or _LATE_BLOCK.search(name):
        return True
    return "attn2_to_k.lora_down" in name and len(shape) > 1 and shape[1] in _SD_CONTEXTS


def _is_sdxl(name: str, shape: tuple[int, ...]) -> bool:
    if name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")):
        return True
    if any(mark in name for mark in ("input_blocks_", "output_blocks_", "middle_block_", "label_emb", "add_embedding")):
        return True
    if "transformer_blocks_1_" in name or "transformer_blocks.1." in name:
        return True  # the others have one in each place
    is_context = "attn2_to_k.lora_down" in name or "attn2.to_k.lora_A" in name
    return is_context and len(shape) > 1 and shape[1] == _SDXL_CONTEXT
