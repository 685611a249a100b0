"""Names of the AutoencoderKL: published single files and diffusers, one table used in both directions.

The two layouts differ in names, in the order of the decoder's levels (reversed), and in the attention's
projections, which are 1 x 1 convolutions [C, C, 1, 1] in published files and linear layers [C, C] in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from library.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_RESNET = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_PROJECTION = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")
_OLD_DIFFUSERS = re.compile(r"\.attentions\.0\.(query|key|value|proj_attn)\.")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MAX_RESNETS = 4  # of a level


def vae_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to diffusers names.

    Args:
        tensors: {published name without prefix: tensor}. Tensors on the meta device do as well.

    Raises:
        CheckpointError: A name that is not of an AutoencoderKL.
    """
    table = vae_names(tensors)
    return {table[name]: tensor.flatten(1) if _PROJECTION.search(name) else tensor for name, tensor in tensors.items()}


def vae_from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers names, old ones too, to published names. The inverse of `vae_to_diffusers`.

    Raises:
        CheckpointError: A name that is not of an AutoencoderKL.
    """
    num_levels = _num_levels(tensors, r"encoder\.down_blocks\.(\d+)\.")
    table = {diffusers: published for published, diffusers in _tensor_names(num_levels).items()}
    current = {_current_name(name): tensor for name, tensor in tensors.items()}
    _refuse_unknown(set(current) - set(table))
    renamed = {table[name]: tensor for name, tensor in current.items()}
    return {
        name: tensor[:, :, None, None] if _PROJECTION.search(name) and tensor.ndim == 2 else tensor
        for name, tensor in renamed.items()
    }


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """{published name: diffusers name} of tensors with these published names.

    Raises:
        CheckpointError: A name that is not of an AutoencoderKL.
    """
    known = set(names)
    table = _tensor_names(_num_levels(known, r"encoder\.down\.(\d+)\."))
    _refuse_unknown(known - set(table))
    return {name: table[name] for name in known}


def _current_name(name: str) -> str:
    return _OLD_DIFFUSERS.sub(lambda match: f".attentions.0.{_OLD_NAMES[match[1]]}.", name)


def _tensor_names(num_levels: int) -> dict[str, str]:
    """{published: diffusers} of every weight and bias there can be."""
    return {
        f"{published}.{suffix}": f"{diffusers}.{suffix}"
        for published, diffusers in _module_names(num_levels).items()
        for suffix in ("weight", "bias")
    }


def _module_names(num_levels: int) -> dict[str, str]:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        names |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        names[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for index in range(2):
            names |= _with(_RESNET, f"{side}.mid.block_{index + 1}", f"{side}.mid_block.resnets.{index}")
        names |= _with(_ATTENTION, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
    for level in range(num_levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{num_levels - 1 - level}"
        names[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        names[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
        for index in range(_MAX_RESNETS):
            names |= _with(_RESNET, f"encoder.down.{level}.block.{index}", f"{down}.resnets.{index}")
            names |= _with(_RESNET, f"decoder.up.{level}.block.{index}", f"{up}.resnets.{index}")
    return names


def _with(parts: Iterable[tuple[str, str]], published: str, diffusers: str) -> dict[str, str]:
    return {f"{published}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in parts}


def _num_levels(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _refuse_unknown(names: set[str]) -> None:
    if names:
        raise CheckpointError(f"not a VAE of this kind: {len(names)} unknown tensors, {', '.join(sorted(names)[:3])}.")
