"""Modules of diffusers and transformers around the tensors of a U-Net model (SD 1.x, SD 2.x, SDXL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part
from library.families.unet.kinds import KINDS, LATENT_CHANNELS
from library.families.unet.parts import DENOISER
from library.models.clip_key_map import PROJECTION, SCALE, clip_from_open_clip
from library.models.unet_key_map import unet_to_diffusers
from library.models.vae_key_map import vae_from_diffusers, vae_to_diffusers

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch import Tensor
    from transformers import CLIPTextModelWithProjection

_OPEN_CLIP_H_LAYERS = 24


def in_library_names(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part under the names of diffusers or transformers."""
    if part.kind == DENOISER:
        return dict(tensors) if part.is_diffusers else unet_to_diffusers(tensors)
    if part.kind == "vae":  # those of diffusers may be old ones
        return vae_to_diffusers(vae_from_diffusers(tensors) if part.is_diffusers else tensors)
    return dict(tensors) if part.is_diffusers else clip_from_open_clip(tensors)


def outlined(part: Part, dtype: torch.dtype) -> dict[str, Tensor]:
    """A part as `read_part` gives it, on the meta device."""
    import torch

    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in part.shapes().items()}
    return in_library_names(part, empty)


def build_vae(kind: str, tensors: Mapping[str, Tensor]) -> AutoencoderKL:
    """The autoencoder of a model of this kind around its tensors."""
    from library.models.vae import load_vae

    return load_vae(tensors, latent_channels=LATENT_CHANNELS, scale=KINDS[kind].vae_scale, shift=0.0)


def build_encoder(kind: str, part: Part, tensors: Mapping[str, Tensor]) -> CLIPTextModelWithProjection:
    """A text encoder of a model of this kind around its tensors."""
    from library.models.text_encoders import load_clip

    facts = KINDS[kind].encoders[part.kind]
    unused = (SCALE,) if facts.is_projected else (SCALE, f"{PROJECTION}.weight")
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    return load_clip(used, kind=facts.clip, num_layers=num_used_layers(part) if facts.has_unused_layer else None)


def num_used_layers(part: Part) -> int | None:
    """Layers of the encoder of SD 2.x that are used; folders of diffusers have no others.

    Some single files leave the last layer of the published 24 out as well.
    """
    if part.is_diffusers:
        return None
    layers = {name.split(".")[2] for name in part.shapes() if name.startswith("transformer.resblocks.")}
    return len(layers) if len(layers) == _OPEN_CLIP_H_LAYERS - 1 else len(layers) - 1
