"""Sizes of a U-Net, read from the shapes of its tensors.

Source: Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952; the published configurations of
Stable Diffusion 1.5, 2.1 and XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from library.errors import CheckpointError
from library.models.assign import count_levels, shape_of
from library.models.text_encoders import clip_heads
from library.models.vae import norm_groups

Shapes = Mapping[str, tuple[int, ...]]

SD1_HEADS = 8  # in every level
_NUM_SIZES = 6  # numbers of SDXL that say what a picture shows
_SIZE_WIDTHS = (256, 32, 16, 8)  # of each number's embedding: that of SDXL, then those of narrower test models


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel.

    Heads are told by no tensor: 8 in each level where the projections around the attention are convolutions (SD1), else
    64 wide (SD2, SDXL); in narrower test models as `clip_heads`, and norm groups as `norm_groups`.

    Args:
        shapes: {name as in diffusers: shape}.

    Raises:
        CheckpointError: A tensor that tells a size is missing, or the sizes do not go together.
    """
    num_levels = count_levels(shapes.keys(), "down_blocks.")
    widths = [_shape(shapes, f"down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(num_levels)]
    attends = [f"down_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(num_levels)]
    is_linear = len(_shape(shapes, "mid_block.attentions.0.proj_in.weight")) == 2
    depths = [_depth(shapes, f"down_blocks.{level}.attentions.0") for level in range(num_levels)]
    depths[-1] = _depth(shapes, "mid_block.attentions.0")  # the last one is that of the middle, too
    return {
        "in_channels": _shape(shapes, "conv_in.weight")[1],
        "out_channels": _shape(shapes, "conv_out.weight")[0],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": count_levels(shapes.keys(), "down_blocks.0.resnets."),
        "norm_num_groups": norm_groups(widths),
        "cross_attention_dim": _shape(shapes, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1],
        "transformer_layers_per_block": depths,
        # the name of this argument is a known slip of diffusers: it is the number of heads
        "attention_head_dim": wide_heads(widths) if is_linear else SD1_HEADS,
        "use_linear_projection": is_linear,
        **_added_embedding(shapes),
    }


def wide_heads(widths: Sequence[int]) -> list[int]:
    """Heads of each level in SD2 and SDXL."""
    return [clip_heads(width) for width in widths]


def _depth(shapes: Shapes, attention: str) -> int:
    """Transformer blocks of an attention; 1 where there is no such attention."""
    return max(1, count_levels(shapes.keys(), f"{attention}.transformer_blocks."))


def _added_embedding(shapes: Shapes) -> dict[str, Any]:
    """Of SDXL: pooled text and sizes are added to the embedding of the timestep."""
    weight = shapes.get("add_embedding.linear_1.weight")
    if weight is None:
        return {}
    width = next((size for size in _SIZE_WIDTHS if weight[1] > _NUM_SIZES * size), None)
    if width is None:
        raise CheckpointError(
            f"the U-Net adds an embedding of {weight[1]} numbers, which leaves none for the text. The file is damaged "
            "or of another model; use another one."
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": width,
        "projection_class_embeddings_input_dim": weight[1],
    }


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    return shape_of(shapes, name, "the U-Net")
