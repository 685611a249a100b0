"""Latents to pictures and back, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from library.errors import UserError
from library.generation.model import DrawingModel

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_OVERLAP = 8  # rows of latents that neighbouring strips share


@torch.no_grad()
def decode(model: DrawingModel, latents: Tensor, *, at_once: int = 1, num_strips: int | None = None) -> Tensor:
    """Images in -1..1, on the CPU.

    Args:
        model: With the VAE.
        latents: Scaled. Shape [B, C, h, w].
        at_once: Pictures that are decoded together.
        num_strips: Of a picture, one after the other; None decodes it whole.

    Raises:
        UserError: The VAE gives numbers that are no picture.
    """
    latents = latents.to(next(model.vae.parameters()).dtype)
    pictures = [_decode_strips(model, part, num_strips or 1).cpu() for part in latents.split(at_once)]
    images = torch.cat(pictures)
    if not images.isfinite().all():
        raise UserError("the VAE gives NaN or infinite numbers. Use --no_half_vae.")
    return images


def _decode_strips(model: DrawingModel, latents: Tensor, num_strips: int) -> Tensor:
    """Strips from top to bottom, blended where they overlap."""
    height, cell = latents.shape[-2], model.family.pixels_per_latent
    step = -(-height // num_strips)
    if step >= height:
        return model.family.decode_latents(model.vae, latents)
    image: Tensor | None = None
    for top in range(0, height, step):
        first = max(0, top - _OVERLAP)
        strip = model.family.decode_latents(model.vae, latents[..., first : top + step, :])
        image = strip if image is None else _blended(image, strip, (top - first) * cell)
    assert image is not None  # there is at least one strip
    return image


def _blended(upper: Tensor, lower: Tensor, overlap: int) -> Tensor:
    """Two images one above the other, that share `overlap` rows."""
    share = torch.linspace(0, 1, overlap, device=upper.device)[:, None]
    middle = upper[..., -overlap:, :] * (1 - share) + lower[..., :overlap, :] * share
    return torch.cat([upper[..., :-overlap, :], middle, lower[..., overlap:, :]], dim=-2)


@torch.no_grad()
def encode(model: DrawingModel, images: Tensor) -> Tensor:
    """Scaled latents of images in -1..1: the mean of what the VAE says, so that nothing is drawn. One after the other.

    Returns:
        float32, on the device of the denoiser. Shape [B, C, h, w].
    """
    cell = model.family.pixels_per_latent
    shape = (1, model.family.latent_channels, images.shape[-2] // cell, images.shape[-1] // cell)
    none = torch.zeros(shape, device=model.device)
    vae_dtype = next(model.vae.parameters()).dtype
    rows = [model.family.encode_images(model.vae, image[None].to(model.device, vae_dtype), none) for image in images]
    return torch.cat(rows).float()


def to_pictures(images: Tensor) -> list[Image]:
    """Images in -1..1, shape [B, 3, H, W], as Pillow pictures."""
    from PIL import Image as pillow

    pixels = ((images.float() + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [pillow.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in pixels]


def to_images(pictures: Sequence[Image]) -> Tensor:
    """Pillow pictures of one size as images in -1..1. Shape [B, 3, H, W], float32."""
    import numpy

    arrays = [torch.from_numpy(numpy.array(picture.convert("RGB"))) for picture in pictures]
    return torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
