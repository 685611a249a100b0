"""The parts of a U-Net model with shapes and without numbers, and inputs for them: what a forecast is counted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from library.families.unet.building import build_encoder, build_vae, outlined
from library.families.unet.kinds import LATENT_CHANNELS
from library.families.unet.parts import encoder_width
from library.models.tokenizers import CLIP_LENGTH

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.families.unet.checkpoint import UnetFiles
    from library.records import Size


def vae_outline(files: UnetFiles, dtype: torch.dtype) -> nn.Module:
    """The autoencoder on the meta device."""
    return build_vae(files.kind, outlined(files.vae, dtype)).requires_grad_(False)


def encoder_outline(files: UnetFiles, name: str, dtype: torch.dtype) -> nn.Module:
    """A text encoder on the meta device."""
    part = files.encoders[name]
    model = build_encoder(files.kind, part, outlined(part, dtype))
    model.text_model.embeddings.position_ids = model.text_model.embeddings.position_ids.to("meta")
    return model.requires_grad_(False)


def denoiser_inputs(
    files: UnetFiles, size: Size, number: int, *, num_tokens: int, text_dtype: torch.dtype, cells: int
) -> dict[str, Any]:
    """Arguments of the U-Net's forward, on the CPU.

    Args:
        files: Of the model.
        size: Of the pictures.
        number: Of pictures.
        num_tokens: Of the text.
        text_dtype: What its states are kept in.
        cells: Pixels of a latent's side.
    """
    inputs: dict[str, Any] = {
        "sample": torch.zeros(number, LATENT_CHANNELS, size.height // cells, size.width // cells),
        "timestep": torch.zeros(number),
        "encoder_hidden_states": torch.zeros(number, num_tokens, files.config["cross_attention_dim"], dtype=text_dtype),
    }
    if files.facts.takes_sizes:
        pooled = torch.zeros(number, encoder_width(files.encoders["clip_g"]), dtype=text_dtype)
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(number, 6)}
    return inputs


def tokens(names: tuple[str, ...], number: int, num_chunks: int) -> dict[str, Tensor]:
    """Ids and masks of so many captions of full length, on the CPU: complete chunks."""
    found = {}
    for name in names:
        found[name] = torch.zeros(number, num_chunks * CLIP_LENGTH, dtype=torch.int64)
        found[f"{name}_mask"] = torch.ones_like(found[name])
    return found
