"""The text of Stable Diffusion 1.x, 2.x and SDXL: rows of tokens, which layer is read, and how rows become one context.

Names: "clip" for SD 1.x and 2.x, "clip_l" and "clip_g" for SDXL, "clip_g_pooled" for its vector.

Sources: Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952, section 2.1; the published
inference code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from library.device import send
from library.errors import OptionError
from library.families.base import Conditioning
from library.models.text_encoders import layer_of
from library.models.token_chunks import INNER, RowTokenizer
from library.models.tokenizers import CLIP_LENGTH

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPTextModelWithProjection

    from library.models.tokenizers import TextTokenizer

_NORM = "text_model.final_layer_norm."
_PROJECTION = "text_projection."


class LayerChoice(NamedTuple):
    """What is read of an encoder.

    Attributes:
        from_end: Which layer, counted from the end: 1 is the last.
        is_normed: The final norm follows, whichever layer it is.
        is_pooled: So is the projected vector of the end token, which comes out of all layers.
    """

    from_end: int
    is_normed: bool
    is_pooled: bool = False


SDXL_LAYERS: Mapping[str, LayerChoice] = {"clip_l": LayerChoice(2, False), "clip_g": LayerChoice(2, False, True)}


def sd_layers(clip_skip: int | None) -> dict[str, LayerChoice]:
    """What is read for SD 1.x and 2.x. `clip_skip` counts from the end; None is the last layer, as 1 is."""
    return {"clip": LayerChoice(clip_skip or 1, True)}


def check_clip_skip(clip_skip: int | None, num_layers: int) -> None:
    """See whether an encoder has that many layers.

    Raises:
        OptionError: It has not.
    """
    if clip_skip is not None and clip_skip > num_layers:
        raise OptionError(
            f"--clip_skip {clip_skip}: the text encoder of this model has {num_layers} layers. Give 1 to {num_layers}."
        )


def text_settings(layers: Mapping[str, LayerChoice], *, num_chunks: int, is_weighted: bool) -> dict[str, str]:
    """Settings that what encoders say depends on, as fields of a cache header."""
    skipped = {str(layer.from_end) for layer in layers.values() if layer.is_normed}
    return {
        **({"clip_skip": ",".join(sorted(skipped))} if skipped else {}),
        "max_token_length": str(num_chunks * INNER),
        "weighted_captions": str(is_weighted),
    }


def tokenize(
    tokenizers: Mapping[str, TextTokenizer], captions: Sequence[str], *, num_chunks: int, is_weighted: bool
) -> dict[str, Tensor]:
    """Token ids of captions, in rows of 77 one after the other.

    Args:
        tokenizers: By name of the encoder.
        captions: The texts.
        num_chunks: Rows: 1, 2 or 3 for captions of 75, 150 or 225 tokens.
        is_weighted: Brackets weigh words.

    Returns:
        {encoder: int64 ids [B, 77 num_chunks]; encoder + "_mask": int64, 1 up to the end of each row, likewise; if
        weighted, encoder + "_weights": float32, likewise}
    """
    tokens = {}
    for name, tokenizer in tokenizers.items():
        rows = [RowTokenizer(tokenizer, num_chunks, is_weighted).encode(caption) for caption in captions]
        tokens[name] = torch.tensor([row.ids for row in rows], dtype=torch.int64)
        tokens[f"{name}_mask"] = torch.tensor([row.mask for row in rows], dtype=torch.int64)
        if is_weighted:
            tokens[f"{name}_weights"] = torch.tensor([row.weights for row in rows], dtype=torch.float32)
    return tokens


def encode(
    encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor], *, layers: Mapping[str, LayerChoice]
) -> dict[str, Tensor]:
    """Run the encoders that are given. Gradients flow unless the caller turns them off.

    Args:
        encoders: CLIPs by name.
        tokens: From `tokenize`.
        layers: What is read of each.

    Returns:
        On each encoder's device: {encoder: [B, 75 num_chunks + 2, D]}, times the weights of the tokens if there are
        any; and encoder + "_pooled": [B, D], of the first row, where it is read.
    """
    states = {}
    for name, encoder in encoders.items():
        device = next(encoder.parameters()).device
        layer, num_chunks = layers[name], tokens[name].shape[1] // CLIP_LENGTH
        output = _run(encoder, send(tokens[name], device).reshape(-1, CLIP_LENGTH), layer)
        chosen = output.last_hidden_state if layer.is_normed else output.hidden_states[-layer.from_end]
        states[name] = _joined(chosen, num_chunks)
        if f"{name}_weights" in tokens:
            weights = _joined(send(tokens[f"{name}_weights"], device).reshape(-1, CLIP_LENGTH), num_chunks)
            states[name] = (states[name] * weights[..., None]).to(chosen.dtype)  # in float32 before
        if layer.is_pooled:
            states[f"{name}_pooled"] = output.text_embeds[::num_chunks]
    return states


def _run(encoder: nn.Module, ids: Tensor, layer: LayerChoice) -> Any:
    """The encoder's output; its last state is the one that is read, if a norm follows.

    The norm is run before the encoder returns: an encoder in shards has whole weights only until then.
    """
    if not layer.is_normed or layer.from_end == 1:
        return encoder(input_ids=ids, output_hidden_states=True)

    def norm(module: nn.Module, _: Any, output: Any) -> Any:
        text_model = cast("CLIPTextModelWithProjection", module).text_model
        output.last_hidden_state = text_model.final_layer_norm(output.hidden_states[-layer.from_end])
        return output

    handle = encoder.register_forward_hook(norm, prepend=True)
    try:
        return encoder(input_ids=ids, output_hidden_states=True)
    finally:
        handle.remove()


def _joined(rows: Tensor, num_chunks: int) -> Tensor:
    """Rows [B num_chunks, 77, ...] as one [B, 75 num_chunks + 2, ...]: the first begin, all that is inside, the last
    of the last."""
    rows = rows.unflatten(0, (-1, num_chunks))
    return torch.cat([rows[:, 0, :1], rows[:, :, 1:-1].flatten(1, 2), rows[:, -1, -1:]], dim=1)


def join_sd(states: Mapping[str, Tensor]) -> Conditioning:
    """The states of the one encoder; there is no pooled vector: [B, 0]."""
    context = states["clip"]
    return Conditioning(context=context, pooled=context.new_empty(len(context), 0))


def join_sdxl(states: Mapping[str, Tensor]) -> Conditioning:
    """Both encoders side by side [B, N, L + G], and the pooled vector of CLIP-G [B, G]."""
    return Conditioning(torch.cat([states["clip_l"], states["clip_g"]], dim=-1), states["clip_g_pooled"])


def reached_parameters(encoder: nn.Module, layer: LayerChoice) -> dict[str, nn.Parameter]:
    """{name: parameter} of those that change what is read of an encoder: not of layers behind it, nor of a norm or
    projection that is passed by."""
    parameters = dict(encoder.named_parameters())
    if layer.is_pooled:
        return parameters
    num_layers = 1 + max(layer_of(name) for name in parameters)
    unread = (_PROJECTION,) if layer.is_normed else (_PROJECTION, _NORM)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if not name.startswith(unread) and layer_of(name) <= num_layers - layer.from_end
    }
