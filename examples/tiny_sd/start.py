"""The model that the training begins with: a trained autoencoder, and text encoder and U-Net with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from examples.tiny_sd3.make import clip_plan, draw_tensors
from examples.tiny_sd3.start import words
from examples.tiny_sd3.tokenizers import write_clip_tokenizer
from library.rng import torch_stream
from library.tensorfile import write_tensors

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Generator, Tensor, nn

CONTEXT_WIDTH = 32
WIDTHS = (32, 40)  # of the U-Net's levels: 8 groups of 4 or 5 channels, and as many heads
ARCHITECTURE = "stable-diffusion-v1"
_QUIET = ("conv2", "proj_out", "conv_out")  # where a branch ends: it begins with nothing


def write_start(path: Path, vae: Mapping[str, Tensor], seed: int) -> None:
    """Write the model into one file in float32, and its tokenizer into a folder beside it.

    Args:
        path: The file.
        vae: Of the autoencoder, in the names of diffusers.
        seed: Of the random weights.
    """
    from library.models.unet_key_map import unet_from_diffusers
    from library.models.vae_key_map import vae_from_diffusers

    path.parent.mkdir(parents=True, exist_ok=True)
    num_tokens = write_clip_tokenizer(path.parent / "tokenizer", words())
    parts = {
        "model.diffusion_model.": unet_from_diffusers(build_unet(seed).state_dict()),
        "first_stage_model.": vae_from_diffusers(vae),
        "cond_stage_model.transformer.": draw_tensors(
            clip_plan(CONTEXT_WIDTH, num_tokens, has_projection=False), seed, "clip"
        ),
    }
    tensors = {
        prefix + name: tensor.float().contiguous() for prefix, part in parts.items() for name, tensor in part.items()
    }
    write_tensors(path, tensors, {"modelspec.architecture": ARCHITECTURE})


def build_unet(seed: int) -> UNet2DConditionModel:
    """The layout of Stable Diffusion 1.x with two levels. It predicts nothing at first; its blocks begin quietly."""
    import torch
    from diffusers import UNet2DConditionModel

    from library.models.vae import norm_groups

    unet = UNet2DConditionModel(
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=WIDTHS,
        norm_num_groups=norm_groups(WIDTHS),
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=8,
    )
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            _draw(module, torch_stream(seed, "tiny_sd_unet", name), is_quiet=name.rpartition(".")[2] in _QUIET)
    return unet


def _draw(module: nn.Linear | nn.Conv2d, draws: Generator, *, is_quiet: bool) -> None:
    """Weight and bias, evenly between plus and minus 1 / sqrt(inputs), or nothing."""
    import torch

    bound = 0.0 if is_quiet else module.weight[0].numel() ** -0.5
    for parameter in module.parameters():
        drawn = torch.rand(parameter.shape, generator=draws)
        parameter.data = (2 * drawn - 1) * bound
