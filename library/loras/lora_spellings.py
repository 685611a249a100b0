"""How different programs spell the tensors of a LoRA file, brought to the two layouts that are known here.

Nothing changes but names, an alpha that stands beside factors in the layout of diffusers, and the core of a
convolution (LyCORIS), which is multiplied into its first factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.families.lora_layout import strength_of

if TYPE_CHECKING:
    from torch import Tensor

_UNET = "lora_unet_"
_MODEL = ("model.diffusion_model.", "diffusion_model.")  # published names behind them, with dots
_PEFT_MODEL = "base_model.model."
_MMDIT_WORDS = ("transformer_blocks.", "pos_embed.", "context_embedder.", "time_text_embed.", "norm_out.", "proj_out.")
_FLAT = ("lora_transformer_", "lycoris_")  # names of diffusers behind them, with _
_MAX_BLOCKS = 64
_SUFFIX = re.compile(
    r"[._](?:lora_linear_layer|lora)[._](?P<half>down|up|A|B)(?:\.default)?(?:\.weight)?$"
    r"|\.(?P<other>[a-z_]\w*(?:\.weight)?)$"
)
_OLD_ATTENTION = re.compile(r"\.processor\.(to_[qkv]|to_out)$")
_BARE_CLIP = re.compile(r"^(lora_te\d?_)(?=encoder_layers_)")
_DOWN, _UP, _MID, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def plain_key(key: str) -> str:
    """The name of a tensor as one of the two layouts has it; any other name stays as it is."""
    match = _SUFFIX.search(key)
    if match is None:
        return key
    name, half, other = key[: match.start()], match["half"], match["other"]
    name = _plain_name(_OLD_ATTENTION.sub(lambda found: f".{found[1]}" + ".0" * (found[1] == "to_out"), name))
    if half is None:
        return f"{name}.{other}"
    is_up, is_kohya = half in ("up", "B"), name.startswith("lora_")
    return name + ((_DOWN, _UP) if is_kohya else (_A, _B))[is_up]


def plain_keys(keys: Iterable[str]) -> dict[str, str]:
    """{name in the file: `plain_key` of it}.

    Raises:
        CheckpointError: Two names mean the same tensor.
    """
    plain: dict[str, str] = {}
    taken: dict[str, str] = {}
    for key in keys:
        own = plain_key(key)
        if own in taken:
            raise CheckpointError(f"{key} and {taken[own]} are the same tensor. Give a file that has one of them.")
        plain[key], taken[own] = own, key
    return plain


def _plain_name(name: str) -> str:
    for start in _MODEL:
        if name.startswith(start):
            return _UNET + name.removeprefix(start).replace(".", "_")
    if name.startswith(_PEFT_MODEL):
        return _with_component(name.removeprefix(_PEFT_MODEL))
    for start in _FLAT:
        if path := name.startswith(start) and _mmdit_paths().get(name.removeprefix(start)):
            return f"transformer.{path}"
    return _BARE_CLIP.sub(r"\1text_model_", name)


def _with_component(path: str) -> str:
    """A path that PEFT has saved of one model, which it does not name."""
    if path.startswith(_MMDIT_WORDS):
        return f"transformer.{path}"
    return f"text_encoder.{path}" if path.startswith(("text_model.", "encoder.layers.")) else f"unet.{path}"


@cache
def _mmdit_paths() -> dict[str, str]:
    """{name of an MMDiT's layer in diffusers, with _: the same with dots}"""
    from library.families.sd3.key_map import mmdit_modules

    names = [name for pair in mmdit_modules(_MAX_BLOCKS) for name in pair.diffusers]
    return {name.replace(".", "_"): name for name in names}


def with_alpha_folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layout of diffusers without alpha tensors: `lora_B` is scaled instead."""
    folded = {key: tensor for key, tensor in tensors.items() if not key.endswith(_ALPHA)}
    for key, alpha in tensors.items():
        name = key.removesuffix(_ALPHA)
        if key.endswith(_ALPHA) and name + _A in folded and name + _B in folded:
            folded[name + _B] = folded[name + _B] * strength_of(name, alpha, folded[name + _A])
    return folded


def with_cores_folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kohya layout without cores: down [r, in, 1, 1] and core [r, s, h, w] become down [r, in, h, w]."""
    import torch

    folded = {key: tensor for key, tensor in tensors.items() if not key.endswith(_MID)}
    for key, core in tensors.items():
        name = key.removesuffix(_MID)
        if key.endswith(_MID) and name + _DOWN in folded:
            down = folded[name + _DOWN]
            folded[name + _DOWN] = torch.einsum("rshw,si->rihw", core.float(), down.flatten(1).float()).to(down.dtype)
    return folded
