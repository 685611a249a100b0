"""The image autoencoder (AutoencoderKL of diffusers) with sizes from tensor shapes, and the scaling of latents.

Outside this file latents are scaled: (z - shift) * scale.

Source: Rombach et al. 2022, arXiv:2112.10752; the published configurations of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from library.errors import CheckpointError
from library.models.assign import assign_tensors, count_levels, shape_of
from library.models.vae_key_map import vae_from_diffusers, vae_to_diffusers

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

# Of Stable Diffusion 3, which has 16 latent channels.
SD3_SCALE = 1.5305
SD3_SHIFT = 0.0609
# Of the others, which have 4 and no shift.
SD_SCALE = 0.18215  # 1.x and 2.x
SDXL_SCALE = 0.13025


def norm_groups(widths: Sequence[int]) -> int:
    """Number of groups of the normalisation layers, which no tensor shape tells.

    32 where that divides every width, as in every published VAE; in narrower test models half the smallest width,
    so that a group has at least two channels.
    """
    if all(width % 32 == 0 for width in widths):
        return 32
    return next(groups for groups in range(max(1, min(widths) // 2), 0, -1) if all(w % groups == 0 for w in widths))


def vae_config(shapes: Mapping[str, tuple[int, ...]], *, scale: float, shift: float) -> dict[str, Any]:
    """Arguments of AutoencoderKL.

    Args:
        shapes: {name as in diffusers: shape}.
        scale: Of the latents.
        shift: Of the latents, taken off before scaling.

    Raises:
        CheckpointError: A tensor that tells a size is missing.
    """
    num_levels = count_levels(shapes.keys(), "encoder.down_blocks.")
    widths = [
        shape_of(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", "vae")[0] for level in range(num_levels)
    ]
    return {
        "in_channels": shape_of(shapes, "encoder.conv_in.weight", "vae")[1],
        "out_channels": shape_of(shapes, "decoder.conv_out.weight", "vae")[0],
        "latent_channels": shape_of(shapes, "decoder.conv_in.weight", "vae")[1],
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "block_out_channels": widths,
        "layers_per_block": count_levels(shapes.keys(), "encoder.down_blocks.0.resnets."),
        "norm_num_groups": norm_groups(widths),
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": scale,
        "shift_factor": shift,
    }


def load_vae(
    tensors: Mapping[str, Tensor],
    *,
    latent_channels: int = 16,
    scale: float = SD3_SCALE,
    shift: float = SD3_SHIFT,
) -> AutoencoderKL:
    """Build the autoencoder around its tensors, in evaluation mode.

    Args:
        tensors: {name without prefix: tensor}, in the published layout or in that of diffusers.
        latent_channels: What the family needs.
        scale: Of the latents.
        shift: Of the latents, taken off before scaling.

    Raises:
        CheckpointError: A VAE of another family; a tensor is missing, unknown or of a wrong shape.
    """
    from diffusers import AutoencoderKL

    is_diffusers = any(name.startswith("encoder.down_blocks.") for name in tensors)
    weights = vae_to_diffusers(vae_from_diffusers(tensors) if is_diffusers else tensors)
    config = vae_config({name: tuple(tensor.shape) for name, tensor in weights.items()}, scale=scale, shift=shift)
    if config["latent_channels"] != latent_channels:
        raise CheckpointError(
            f"the VAE has {config['latent_channels']} latent channels, the model needs {latent_channels}. "
            "Give the VAE of the model's own family with --vae."
        )
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    assign_tensors(vae, weights, "vae")
    return vae.eval()


def encode_images(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """Draw scaled latents of images.

    Args:
        vae: From `load_vae`.
        images: In -1..1. Shape [B, 3, H, W].
        noise: Standard normal, for the draw from the posterior. Shape [B, C, H / 8, W / 8].

    Returns:
        (mean + std * noise - shift) * scale, computed in float32 and given in the precision of the VAE. Shape as noise.

    Raises:
        CheckpointError: Some are not finite.
    """
    posterior = vae.encode(images.to(_dtype(vae))).latent_dist
    std = torch.exp(0.5 * posterior.logvar.float())  # logvar is clamped to -30..20 by the library
    sample = posterior.mean.float() + std * noise.float()  # [B, C, h, w]
    latents = ((sample - vae.config.shift_factor) * vae.config.scaling_factor).to(_dtype(vae))
    if not torch.isfinite(latents).all():
        raise CheckpointError(
            f"the VAE gave latents that are not finite, computing in {str(_dtype(vae)).removeprefix('torch.')}. "
            "Use --no_half_vae; if it is on, the VAE file is damaged."
        )
    return latents


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents to images.

    Args:
        vae: From `load_vae`.
        latents: Shape [B, C, h, w].

    Returns:
        float32 in -1..1. Shape [B, 3, 8 * h, 8 * w].
    """
    unscaled = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
    images: Tensor = vae.decode(unscaled.to(_dtype(vae))).sample
    return images.float().clamp(-1, 1)


def _dtype(vae: AutoencoderKL) -> torch.dtype:
    dtype: torch.dtype = next(vae.parameters()).dtype
    return dtype
