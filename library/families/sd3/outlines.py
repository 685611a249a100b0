"""The parts of SD3 with shapes and without numbers, and inputs for them: what a forecast of memory is counted on."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from library.families.sd3.t5_format import T5Format
from library.families.sd3.text_sizes import text_limit

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.checkpoint.weights import Part
    from library.models.mmdit import MMDiTConfig
    from library.records import Size


def vae_outline(part: Part, dtype: torch.dtype) -> nn.Module:
    """The autoencoder on the meta device."""
    from library.models.vae import load_vae

    return load_vae(_empty(part, dtype)).requires_grad_(False)


def clip_outline(part: Part, kind: str, dtype: torch.dtype) -> nn.Module:
    """A CLIP on the meta device."""
    from library.models.text_encoders import load_clip

    model = load_clip(_empty(part, dtype), kind=kind)
    model.text_model.embeddings.position_ids = model.text_model.embeddings.position_ids.to("meta")
    return model.requires_grad_(False)


def t5_outline(part: Part, form: T5Format) -> nn.Module:
    """T5 in a format, on the meta device."""
    from library.memory.quantized_layers import replace_layers
    from library.models.text_encoders import empty_t5, load_t5, t5_weight_dtype

    if form.bits is None:
        return load_t5(_empty(part, form.dtype)).requires_grad_(False)
    model = empty_t5(part.shapes())
    replace_layers(model, form.bits, lambda name: t5_weight_dtype(name, form.dtype))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(form.dtype)
    return model.requires_grad_(False).eval()


def _empty(part: Part, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in part.shapes().items()}


def denoiser_inputs(
    config: MMDiTConfig, size: Size, number: int, *, num_tokens: int, text_dtype: torch.dtype, cells: int
) -> dict[str, Tensor]:
    """Arguments of the MMDiT's forward, on the CPU.

    Args:
        config: Sizes of the model.
        size: Of the pictures.
        number: Of pictures.
        num_tokens: Of the text.
        text_dtype: What its states are kept in.
        cells: Pixels of a latent's side.
    """
    shape = (config.in_channels, size.height // cells, size.width // cells)
    patches = prod(shape[1:]) // config.patch_size**2
    return {
        "latents": torch.zeros(number, *shape),
        "timesteps": torch.zeros(number),
        "context": torch.zeros(number, num_tokens, config.context_dim, dtype=text_dtype),
        "pooled": torch.zeros(number, config.pooled_dim, dtype=text_dtype),
        "positions": torch.zeros(1, patches, config.hidden, dtype=torch.float16),
    }


def tokens(names: tuple[str, ...], number: int, t5_length: int) -> dict[str, Tensor]:
    """Ids and masks of so many captions of full length, on the CPU."""
    found = {}
    for name in names:
        found[name] = torch.zeros(number, text_limit(name, t5_length), dtype=torch.int64)
        found[f"{name}_mask"] = torch.ones_like(found[name])
    return found
