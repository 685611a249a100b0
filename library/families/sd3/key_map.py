"""Names of the MMDiT: published single files and diffusers, one table used in both directions.

Queries, keys and values are one fused projection in published files, three in diffusers. Two modulations have their
halves exchanged: (shift, scale) in published files, (scale, shift) in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModulePair:
    """One module under both names.

    Attributes:
        published: For instance "joint_blocks.0.x_block.attn.qkv".
        diffusers: One name; or three, which are equal row chunks (queries, keys, values) of the published module.
        is_swapped: The two halves of the rows are exchanged.
    """

    published: str
    diffusers: tuple[str, ...]
    is_swapped: bool = False


_ENDS = (
    ModulePair("x_embedder.proj", ("pos_embed.proj",)),
    ModulePair("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    ModulePair("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    ModulePair("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    ModulePair("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    ModulePair("context_embedder", ("context_embedder",)),
    ModulePair("final_layer.linear", ("proj_out",)),
    ModulePair("final_layer.adaLN_modulation.1", ("norm_out.linear",), is_swapped=True),
)
_BLOCK = (  # inside joint_blocks.i and transformer_blocks.i
    ModulePair("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ModulePair("x_block.attn.proj", ("attn.to_out.0",)),
    ModulePair("x_block.attn.ln_q", ("attn.norm_q",)),
    ModulePair("x_block.attn.ln_k", ("attn.norm_k",)),
    ModulePair("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    ModulePair("x_block.attn2.proj", ("attn2.to_out.0",)),
    ModulePair("x_block.attn2.ln_q", ("attn2.norm_q",)),
    ModulePair("x_block.attn2.ln_k", ("attn2.norm_k",)),
    ModulePair("x_block.mlp.fc1", ("ff.net.0.proj",)),
    ModulePair("x_block.mlp.fc2", ("ff.net.2",)),
    ModulePair("x_block.adaLN_modulation.1", ("norm1.linear",)),
    ModulePair("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    ModulePair("context_block.attn.proj", ("attn.to_add_out",)),
    ModulePair("context_block.attn.ln_q", ("attn.norm_added_q",)),
    ModulePair("context_block.attn.ln_k", ("attn.norm_added_k",)),
    ModulePair("context_block.mlp.fc1", ("ff_context.net.0.proj",)),
    ModulePair("context_block.mlp.fc2", ("ff_context.net.2",)),
    ModulePair("context_block.adaLN_modulation.1", ("norm1_context.linear",)),
)
_SWAPPED_IN_LAST_BLOCK = "context_block.adaLN_modulation.1"
_POSITIONS = ModulePair("pos_embed", ("pos_embed.pos_embed",))  # a tensor, not a module


def mmdit_modules(depth: int) -> tuple[ModulePair, ...]:
    """Every module with weights that an MMDiT of `depth` blocks can have; which of them it has, its tensors tell."""
    blocks = (_in_block(pair, index, depth) for index in range(depth) for pair in _BLOCK)
    return (*_ENDS, *blocks)


def _in_block(pair: ModulePair, index: int, depth: int) -> ModulePair:
    return ModulePair(
        f"joint_blocks.{index}.{pair.published}",
        tuple(f"transformer_blocks.{index}.{name}" for name in pair.diffusers),
        is_swapped=index == depth - 1 and pair.published == _SWAPPED_IN_LAST_BLOCK,
    )


def depth_of(names: Iterable[str]) -> int:
    """Number of blocks, from tensor or module names of either layout (0 if there are none)."""
    pattern = re.compile(r"(?:joint|transformer)_blocks\.(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


def mmdit_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of diffusers' SD3Transformer2DModel.

    Args:
        tensors: {published name without prefix: tensor}. Tensors on the meta device do as well. Chunks are views.

    Raises:
        CheckpointError: A name that is not of an MMDiT.
    """
    converted: dict[str, Tensor] = {}
    for name, pair in mmdit_tensors(tensors).items():
        converted |= zip(pair.diffusers, diffusers_parts(pair, tensors[name]), strict=True)
    return converted


def mmdit_tensors(names: Iterable[str]) -> dict[str, ModulePair]:
    """{published name: it and its diffusers names} of the tensors of an MMDiT, in their order.

    Raises:
        CheckpointError: A name that is not of an MMDiT.
    """
    known = list(names)
    pairs = {pair.published: pair for pair in _tensor_pairs(depth_of(known))}
    _refuse_unknown(set(known) - set(pairs))
    return {name: pairs[name] for name in known}


def diffusers_parts(pair: ModulePair, tensor: Tensor) -> tuple[Tensor, ...]:
    """What a published tensor is for diffusers, in the order of `pair.diffusers`. Chunks are views."""
    whole = _swap_halves(tensor) if pair.is_swapped else tensor
    return tuple(whole.chunk(len(pair.diffusers)))


def published_tensor(pair: ModulePair, parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `diffusers_parts`. What is kept of a tensor for each of its rows may be given as well."""
    import torch

    whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return _swap_halves(whole) if pair.is_swapped else whole


def mmdit_from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers' SD3Transformer2DModel to published names. The inverse of `mmdit_to_diffusers`.

    Raises:
        CheckpointError: A name that is not of an MMDiT, or a part of a fused projection is missing.
    """
    converted: dict[str, Tensor] = {}
    for pair in _tensor_pairs(depth_of(tensors)):
        parts = [tensors[name] for name in pair.diffusers if name in tensors]
        if not parts:
            continue
        if len(parts) != len(pair.diffusers):
            missing = [name for name in pair.diffusers if name not in tensors]
            raise CheckpointError(
                f"the transformer has no tensor {', '.join(missing)}. "
                "The file is incomplete: download it again, or use another."
            )
        converted[pair.published] = published_tensor(pair, parts)
    known = {name for pair in _tensor_pairs(depth_of(tensors)) for name in pair.diffusers}
    _refuse_unknown(set(tensors) - known)
    return converted


def _tensor_pairs(depth: int) -> list[ModulePair]:
    return [_POSITIONS] + [
        ModulePair(f"{pair.published}.{suffix}", tuple(f"{name}.{suffix}" for name in pair.diffusers), pair.is_swapped)
        for pair in mmdit_modules(depth)
        for suffix in ("weight", "bias")
    ]


def _swap_halves(tensor: Tensor) -> Tensor:
    return tensor.roll(tensor.shape[0] // 2, 0)


def _refuse_unknown(names: set[str]) -> None:
    if names:
        raise CheckpointError(f"not an SD3 MMDiT: {len(names)} unknown tensors, {', '.join(sorted(names)[:3])}.")
