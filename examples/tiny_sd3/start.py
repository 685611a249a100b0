"""The model that the training begins with: a trained autoencoder, and everything else from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from examples.tiny_sd3.make import (
    CLIP_G_WIDTH,
    CLIP_L_WIDTH,
    CONTEXT_WIDTH,
    LATENT_CHANNELS,
    POOLED_WIDTH,
    POSITIONS,
    PREFIXES,
    clip_plan,
    draw_tensors,
    t5_plan,
    with_both_embeddings,
)
from examples.tiny_sd3.tokenizers import WORDS, write_tokenizers
from examples.tiny_sd3.world import vocabulary
from library.tensorfile import write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from library.models.mmdit import MMDiT

DEPTH = 3  # blocks; the width is 64 times as much
SHORT = 20  # tokens of CLIP and of T5, into which every caption of the world fits
ARCHITECTURE = "stable-diffusion-3-medium"
_FIRST = ("above", "striped")  # words that would stay in pieces further down


def words() -> tuple[str, ...]:
    """Words with a token of their own: those of the world's captions, and some for what is yet to be learned."""
    every = dict.fromkeys([*_FIRST, *sorted({*vocabulary(), *WORDS}, key=lambda word: (-len(word), word))])
    return tuple(every)


def write_short_tokenizers(folder: Path) -> tuple[int, int]:
    """Write the folders tokenizer, tokenizer_2 and tokenizer_3. Returns the sizes of CLIP's and T5's vocabulary.

    CLIP's say that captions have SHORT tokens: fewer than usual, which is faster.
    """
    return write_tokenizers(folder, words(), clip_length=SHORT)


def write_start(path: Path, vae: Mapping[str, Tensor], seed: int) -> None:
    """Write the model into one file, and its tokenizers beside it.

    Args:
        path: The file, in float32: what is random is not rounded before the training.
        vae: Of the trained autoencoder, in the names of diffusers.
        seed: Of the random weights.
    """
    from library.models.vae_key_map import vae_from_diffusers

    path.parent.mkdir(parents=True, exist_ok=True)
    clip_vocab, t5_vocab = write_short_tokenizers(path.parent)
    parts: dict[str, Mapping[str, Tensor]] = {
        "mmdit": build_mmdit(seed).state_dict(),
        "vae": vae_from_diffusers(vae),
        "clip_l": draw_tensors(clip_plan(CLIP_L_WIDTH, clip_vocab, has_projection=False), seed, "clip_l"),
        "clip_g": draw_tensors(clip_plan(CLIP_G_WIDTH, clip_vocab, has_projection=True), seed, "clip_g"),
        "t5xxl": with_both_embeddings(draw_tensors(t5_plan(t5_vocab), seed, "t5xxl")),
    }
    named = {PREFIXES[part] + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    write_tensors(path, named, {"modelspec.architecture": ARCHITECTURE})


def build_mmdit(seed: int) -> MMDiT:
    """SD3-medium's layout, small. It predicts nothing at first, and its blocks begin quietly."""
    import torch
    from torch import nn

    from library.models.mmdit import MMDiT, MMDiTConfig

    config = MMDiTConfig(
        depth=DEPTH,
        num_heads=DEPTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        context_dim=CONTEXT_WIDTH,
        pooled_dim=POOLED_WIDTH,
        position_side=POSITIONS,
    )
    torch.manual_seed(seed)
    mmdit = MMDiT(config)
    for name, module in mmdit.named_modules():
        if isinstance(module, nn.Linear):
            gain = 0.1 if "adaLN" in name else 0.0 if name == "final_layer.linear" else 1.0
            nn.init.xavier_uniform_(module.weight, gain)
            nn.init.zeros_(module.bias)
    return mmdit
