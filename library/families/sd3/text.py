"""The text layout of Stable Diffusion 3: three encoders, their masks, and how their outputs are put together.

Names: "clip_l", "clip_g" and "t5xxl" for token states, "clip_l_pooled" and "clip_g_pooled" for the vectors.

Source: Esser et al. 2024, arXiv:2403.03206, section 4 and appendix B; the published inference code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from library.device import send
from library.errors import CheckpointError
from library.families.base import Conditioning

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.models.tokenizers import TextTokenizer


def tokenize(tokenizers: Mapping[str, TextTokenizer], captions: Sequence[str], *, t5_length: int) -> dict[str, Tensor]:
    """Token ids of captions, cut or padded to a fixed length.

    Returns:
        {encoder: int64 ids [B, L], encoder + "_mask": int64, 1 up to the end token [B, L]}. L is what the tokenizer
        says for CLIP (77), `t5_length` for T5.
    """
    tokens = {}
    for name, tokenizer in tokenizers.items():
        length = tokenizer.length or t5_length
        rows = [tokenizer.encode(caption, length) for caption in captions]
        tokens[name] = torch.tensor([ids for ids, _ in rows], dtype=torch.int64)
        tokens[f"{name}_mask"] = torch.tensor([mask for _, mask in rows], dtype=torch.int64)
    return tokens


def encode(
    encoders: Mapping[str, nn.Module],
    tokens: Mapping[str, Tensor],
    *,
    apply_lg_attn_mask: bool,
    apply_t5_attn_mask: bool,
) -> dict[str, Tensor]:
    """Run the encoders that are given. Gradients flow unless the caller turns them off.

    A mask goes into the encoder, so that no token sees the padding, and the padding's own rows become zero.

    Args:
        encoders: Any of "clip_l", "clip_g", "t5xxl".
        tokens: From `tokenize`.
        apply_lg_attn_mask: Mask the padding of both CLIPs.
        apply_t5_attn_mask: Mask the padding of T5.

    Returns:
        On each encoder's device and in its precision: "clip_l" and "clip_g" [B, 77, width], the last but one layer
        without the final norm; "clip_l_pooled" and "clip_g_pooled" [B, width], the projected vector of the end token;
        "t5xxl" [B, T, D].
    """
    states = {}
    for name, encoder in encoders.items():
        device = next(encoder.parameters()).device
        ids = send(tokens[name], device)
        is_masked = apply_t5_attn_mask if name == "t5xxl" else apply_lg_attn_mask
        mask = send(tokens[f"{name}_mask"], device) if is_masked else None
        if name == "t5xxl":
            output = encoder(input_ids=ids, attention_mask=mask)
            states[name] = _zero_padding(output.last_hidden_state, mask)
        else:
            output = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states[name] = _zero_padding(output.hidden_states[-2], mask)
            states[f"{name}_pooled"] = output.text_embeds
    return states


def text_rows(tokens: Mapping[str, Tensor], masked: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """How many rows of each sample's states are not padding.

    Args:
        tokens: From `tokenize`.
        masked: Encoders whose padding is set to zero.
    """
    return {name: tuple(tokens[f"{name}_mask"].sum(dim=1).tolist()) for name in masked if name in tokens}


def _zero_padding(states: Tensor, mask: Tensor | None) -> Tensor:
    return states if mask is None else states.masked_fill(mask[:, :, None] == 0, 0)


def drop(states: Mapping[str, Tensor], uniform: Mapping[str, Tensor], rates: Mapping[str, float]) -> dict[str, Tensor]:
    """Encoder dropout: zero all an encoder says of a sample, its tokens and its pooled vector.

    Args:
        states: {name: [B, ...]}, not changed.
        uniform: A draw in [0, 1) per sample for each encoder with a rate above 0. Shape [B] each.
        rates: Chance of dropping, 0-1, per encoder.
    """
    dropped = dict(states)
    for encoder, rate in rates.items():
        for name in (encoder, f"{encoder}_pooled"):
            if rate > 0 and name in dropped:
                state = dropped[name]
                is_dropped = (uniform[encoder] < rate).to(state.device)  # [B]
                dropped[name] = state.masked_fill(is_dropped.reshape(-1, *[1] * (state.ndim - 1)), 0)
    return dropped


def used_rows(states: Mapping[str, Tensor], rows: Mapping[str, Sequence[int]]) -> Tensor:
    """Which rows of what `join` makes may differ from zero.

    Args:
        states: As for `join`.
        rows: As from `text_rows`, of encoders where it is known; the others' rows all count as used.

    Returns:
        On the CPU. Shape [B, 77 + T], bool.
    """
    batch, clip_length = states["clip_l"].shape[:2]
    clip_l, clip_g = (rows.get(name, [clip_length] * batch) for name in ("clip_l", "clip_g"))
    clip = [max(pair) for pair in zip(clip_l, clip_g, strict=True)]
    t5_length = states["t5xxl"].shape[1] if "t5xxl" in states else clip_length
    t5 = rows.get("t5xxl", [t5_length] * batch) if "t5xxl" in states else [0] * batch
    places = [(clip, torch.arange(clip_length)), (t5, torch.arange(t5_length))]
    return torch.cat([place < torch.tensor(numbers)[:, None] for numbers, place in places], dim=1)


def join(states: Mapping[str, Tensor], *, context_dim: int, pooled_dim: int | None = None) -> Conditioning:
    """Put the states of all encoders together as the MMDiT expects them.

    Args:
        states: From `encode` or the cache. Without "t5xxl", 77 rows of zeros stand for it.
        context_dim: Width of the model's context.
        pooled_dim: Width of the model's pooled vector; checked if given.

    Returns:
        context [B, 77 + T, context_dim]: CLIP-L and CLIP-G side by side, filled up with zeros on the right, then T5;
        pooled [B, P]: CLIP-L, then CLIP-G.

    Raises:
        CheckpointError: The encoders are not those of the model.
    """
    clip = torch.cat([states["clip_l"], states["clip_g"]], dim=-1)  # [B, 77, L + G]
    pooled = torch.cat([states["clip_l_pooled"], states["clip_g_pooled"]], dim=-1)  # [B, L + G]
    if clip.shape[-1] > context_dim or (pooled_dim is not None and pooled.shape[-1] != pooled_dim):
        raise CheckpointError(
            f"clip_l and clip_g are {pooled.shape[-1]} wide together, the model expects {pooled_dim or context_dim}. "
            "Give the encoders of this model with --clip_l and --clip_g."
        )
    clip = F.pad(clip, (0, context_dim - clip.shape[-1]))
    t5 = states["t5xxl"] if "t5xxl" in states else torch.zeros_like(clip)
    if t5.shape[-1] != context_dim:
        raise CheckpointError(
            f"t5xxl is {t5.shape[-1]} wide, the model expects {context_dim}. Give the T5 of this model with --t5xxl."
        )
    return Conditioning(context=torch.cat([clip, t5], dim=1), pooled=pooled)
