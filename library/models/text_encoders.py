"""CLIP and T5 text encoders of transformers, with sizes read from tensor shapes.

No configuration file and no network is needed. Encoders are in evaluation mode and T5's dropout is 0, so it never
fires, not even where gradient checkpointing puts them in training mode.

Sources: Radford et al. 2021, arXiv:2103.00020 (CLIP); Raffel et al. 2020, arXiv:1910.10683 (T5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch

from library.log import get_logger
from library.models.assign import assign_tensors, count_levels, shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]

CLIP_LAYERS = "text_model.encoder.layers."
CLIP_TOKENS = "text_model.embeddings.token_embedding.weight"
T5_TOKENS = "shared.weight"
T5_TOKENS_TWIN = "encoder.embed_tokens.weight"
_PROJECTION = "text_projection.weight"
_ACTIVATIONS = {"clip_l": "quick_gelu", "clip_g": "gelu", "clip_h": "gelu"}
_PROJECTED = ("clip_g",)  # of whose pooled vector models make use; that of the others is taken as it is
_NOT_TEXT = ("vision_model.", "visual_projection.", "logit_scale", "text_model.embeddings.position_ids")
_NOT_ENCODER = ("decoder.", "lm_head.", "spiece_model")

logger = get_logger(__name__)


def clip_heads(width: int) -> int:
    """Number of attention heads, which no tensor shape tells.

    Heads are 64 wide where that divides the width, as in every published CLIP; in narrower test models 16 or 8 wide.
    """
    return next((width // size for size in (64, 16, 8) if width % size == 0), 1)


def clip_config(shapes: Shapes, *, kind: str, num_heads: int | None = None) -> CLIPTextConfig:
    """Sizes of a CLIP text encoder.

    Args:
        shapes: {name: shape}, with or without the prefix "text_model.".
        kind: "clip_l", "clip_g" or "clip_h" (of SD 2.x); they differ in activation and projection.
        num_heads: Instead of `clip_heads`.

    Raises:
        CheckpointError: A tensor that tells a size is missing.
    """
    from transformers import CLIPTextConfig

    shapes = with_text_model(shapes)
    num_tokens, width = shape_of(shapes, CLIP_TOKENS, kind)
    projected = shape_of(shapes, _PROJECTION, kind)[0] if kind in _PROJECTED else width
    return CLIPTextConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        intermediate_size=shape_of(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", kind)[0],
        projection_dim=projected,
        num_hidden_layers=count_levels(shapes.keys(), CLIP_LAYERS),
        num_attention_heads=num_heads or clip_heads(width),
        max_position_embeddings=shape_of(shapes, "text_model.embeddings.position_embedding.weight", kind)[0],
        hidden_act=_ACTIVATIONS[kind],
        layer_norm_eps=1e-5,
        attention_dropout=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,  # means: pool at the first position of the highest id, which holds for any vocabulary
    )


def load_clip(
    tensors: Mapping[str, Tensor], *, kind: str, num_heads: int | None = None, num_layers: int | None = None
) -> CLIPTextModelWithProjection:
    """Build a CLIP text encoder around its tensors.

    The projection of all but CLIP-G is the identity: published single files of CLIP-L have none, and no model takes
    that of another.

    Args:
        tensors: {name as in transformers, without prefix: tensor}.
        kind: "clip_l", "clip_g" or "clip_h".
        num_heads: Instead of `clip_heads`.
        num_layers: How many layers are used, of more that there may be; None is all.

    Raises:
        CheckpointError: A tensor is missing, unknown or of a wrong shape.
    """
    from transformers import CLIPTextModelWithProjection

    weights = {name: tensor for name, tensor in with_text_model(tensors).items() if not name.startswith(_NOT_TEXT)}
    if num_layers is not None:
        weights = {name: tensor for name, tensor in weights.items() if layer_of(name) < num_layers}
    config = clip_config(
        {name: tuple(tensor.shape) for name, tensor in weights.items()}, kind=kind, num_heads=num_heads
    )
    if kind not in _PROJECTED:
        if _PROJECTION in weights:
            logger.info("%s: its text projection is not used, as in other tools", kind)
        tokens = weights[CLIP_TOKENS]
        weights[_PROJECTION] = torch.eye(config.hidden_size, dtype=tokens.dtype, device=tokens.device)
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    assign_tensors(model, weights, kind)
    # The only buffer that files do not have.
    model.text_model.embeddings.position_ids = torch.arange(
        config.max_position_embeddings, device=weights[CLIP_TOKENS].device
    ).expand(1, -1)
    return model.eval()


def layer_of(name: str) -> int:
    """Number of the layer of a CLIP that a tensor belongs to; -1 outside of layers."""
    return int(name.removeprefix(CLIP_LAYERS).partition(".")[0]) if name.startswith(CLIP_LAYERS) else -1


def t5_config(shapes: Shapes) -> T5Config:
    """Sizes of a T5 v1.1 encoder.

    Args:
        shapes: {name: shape}.

    Raises:
        CheckpointError: A tensor that tells a size is missing.
    """
    from transformers import T5Config

    what = "t5xxl"
    first = "encoder.block.0.layer."
    num_buckets, num_heads = shape_of(shapes, f"{first}0.SelfAttention.relative_attention_bias.weight", what)
    num_tokens, width = shape_of(shapes, T5_TOKENS if T5_TOKENS in shapes else T5_TOKENS_TWIN, what)
    return T5Config(
        vocab_size=num_tokens,
        d_model=width,
        d_kv=shape_of(shapes, f"{first}0.SelfAttention.q.weight", what)[0] // num_heads,
        d_ff=shape_of(shapes, f"{first}1.DenseReluDense.wi_0.weight", what)[0],
        num_layers=count_levels(shapes.keys(), "encoder.block."),
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )


def empty_t5(shapes: Shapes) -> T5EncoderModel:
    """A T5 encoder on the meta device, for `load_t5` to fill.

    Args:
        shapes: {name as in transformers: shape}.

    Raises:
        CheckpointError: A tensor that tells a size is missing.
    """
    from transformers import T5EncoderModel

    with torch.device("meta"):
        return T5EncoderModel(t5_config({name: shapes[name] for name in shapes if is_of_t5_encoder(name)}))


def load_t5(tensors: Mapping[str, Tensor], model: T5EncoderModel | None = None) -> T5EncoderModel:
    """Build a T5 encoder around its tensors.

    In float16 the second matrix of each feed-forward layer is kept in float32, see `t5_weight_dtype`.

    Args:
        tensors: {name as in transformers: tensor}. Of `shared.weight` and `encoder.embed_tokens.weight` one is enough.
        model: From `empty_t5`, where its layers are others by now; by default it is made.

    Raises:
        CheckpointError: A tensor is missing, unknown or of a wrong shape.
    """
    weights = {name: _widened(name, tensor) for name, tensor in tensors.items() if is_of_t5_encoder(name)}
    if model is None:
        model = empty_t5({name: tuple(tensor.shape) for name, tensor in weights.items()})
    tokens = weights[T5_TOKENS] if T5_TOKENS in weights else weights[T5_TOKENS_TWIN]
    assign_tensors(model, {**weights, T5_TOKENS: tokens, T5_TOKENS_TWIN: tokens}, "t5xxl")
    model.encoder.embed_tokens.weight = model.shared.weight
    return model.eval()


def is_of_t5_encoder(name: str) -> bool:
    """Whether a tensor belongs to the encoder; files of a whole T5 have a decoder too."""
    return not name.startswith(_NOT_ENCODER)


def t5_weight_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a weight of T5 is kept in where all are asked for in `dtype`.

    In float16 the second matrix of each feed-forward layer stays in float32, as transformers has it: its outputs
    exceed the range of float16.
    """
    return torch.float32 if dtype == torch.float16 and name.endswith(".DenseReluDense.wo.weight") else dtype


def token_rows(shapes: Shapes, name: str) -> int:
    """Number of tokens that an encoder ("clip_l", "clip_g" or "t5xxl") knows.

    Raises:
        CheckpointError: Its token embedding is missing.
    """
    if name != "t5xxl":
        return shape_of(with_text_model(shapes), CLIP_TOKENS, name)[0]
    return shape_of(shapes, T5_TOKENS if T5_TOKENS in shapes else T5_TOKENS_TWIN, name)[0]


def _widened(name: str, tensor: Tensor) -> Tensor:
    return tensor.to(t5_weight_dtype(name, tensor.dtype))


def with_text_model(named: Mapping[str, T]) -> dict[str, T]:
    """Names of a CLIP with "text_model.", which folders saved by newer transformers leave out."""
    if CLIP_TOKENS.removeprefix("text_model.") not in named:
        return dict(named)
    inside = ("embeddings.", "encoder.", "final_layer_norm.")
    return {f"text_model.{name}" if name.startswith(inside) else name: item for name, item in named.items()}
