"""Names of CLIP text encoders: open_clip (SD 2.x, the second encoder of SDXL) and Hugging Face, one table both ways.

Queries, keys and values are one fused projection in open_clip, three layers at Hugging Face. The matrix that projects
the pooled vector is transposed: open_clip's `text_projection` is used as x @ M, Hugging Face's `text_projection.weight`
is a linear layer's. Both are square, so no shape shows a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from library.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PROJECTION = "text_projection"  # of open_clip, a bare tensor
SCALE = "logit_scale"  # of both; nobody reads it, files keep it

_ENDS = (
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
    (PROJECTION, "text_projection.weight"),
    (SCALE, SCALE),
)
_LAYER = (
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.")
_HF_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")


def clip_from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names to Hugging Face's.

    Args:
        tensors: {name without prefix: tensor}. Tensors on the meta device do as well. Chunks are views.

    Raises:
        CheckpointError: A name that is not of such an encoder.
    """
    table = open_clip_names(tensors)
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = (
            tensor.chunk(3) if len(table[name]) > 1 else (tensor.t().contiguous() if name == PROJECTION else tensor,)
        )
        converted |= zip(table[name], parts, strict=True)
    return converted


def clip_to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names to open_clip's. The inverse of `clip_from_open_clip`.

    Raises:
        CheckpointError: A name that is not of such an encoder, or a part of a fused projection is missing.
    """
    import torch

    table = _table(_num_layers(tensors, _HF_LAYER))
    _refuse_unknown(set(tensors) - {name for names in table.values() for name in names})
    converted: dict[str, Tensor] = {}
    for name, parts in table.items():
        found = [tensors[part] for part in parts if part in tensors]
        if not found:
            continue
        if len(found) < len(parts):
            missing = ", ".join(part for part in parts if part not in tensors)
            raise CheckpointError(f"the text encoder has no tensor {missing}. Use a complete file.")
        whole = torch.cat(found) if len(found) > 1 else found[0]
        converted[name] = whole.t().contiguous() if name == PROJECTION else whole
    return converted


def open_clip_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{open_clip's name: Hugging Face's; three of them are equal row chunks of the one} of tensors with these names.

    Raises:
        CheckpointError: A name that is not of such an encoder.
    """
    known = list(names)
    table = _table(_num_layers(known, _OPEN_CLIP_LAYER))
    _refuse_unknown(set(known) - set(table))
    return {name: table[name] for name in known}


def _table(num_layers: int) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {name: (other,) for name, other in _ENDS}
    for index in range(num_layers):
        ours, theirs = f"transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            fused = tuple(f"{theirs}.self_attn.{projection}_proj.{kind}" for projection in "qkv")
            table[f"{ours}.attn.in_proj_{kind}"] = fused
            table |= {f"{ours}.{name}.{kind}": (f"{theirs}.{other}.{kind}",) for name, other in _LAYER}
    return table


def _num_layers(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


def _refuse_unknown(names: set[str]) -> None:
    if names:
        listed = ", ".join(sorted(names)[:3])
        raise CheckpointError(f"not a CLIP text encoder: {len(names)} unknown tensors, {listed}.")
