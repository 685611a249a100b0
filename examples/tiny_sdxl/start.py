"""The model that the training begins with: autoencoder and CLIP-L of the tiny SD 1.x, the rest with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from examples.tiny_sd3.make import clip_plan, draw_tensors
from examples.tiny_sd3.start import words
from examples.tiny_sd3.tokenizers import write_clip_tokenizer
from library.models.vae import SD_SCALE, SDXL_SCALE
from library.rng import torch_stream
from library.tensorfile import read_header, read_tensors, write_tensors

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor

ARCHITECTURE = "stable-diffusion-xl-v1-base"
CLIP_L_WIDTH = 32  # of the tiny SD 1.x
CLIP_G_WIDTH = 48
WIDTHS = (32, 40, 48)  # of the U-Net's levels, which have 8 groups
TOKENIZERS = ("tokenizer", "tokenizer_2")
_SIZE_WIDTH = 8  # of the embedding of each of the six sizes
_QUIET = ("conv2", "proj_out", "conv_out")  # where a branch ends: it begins with nothing
_OLD_CLIP, _OLD_VAE = "cond_stage_model.transformer.", "first_stage_model."


def write_start(path: Path, small: Path, seed: int) -> None:
    """Write the model into one file in float32, and its tokenizers into folders beside it.

    Args:
        path: The file.
        small: The tiny SD 1.x, a single file.
        seed: Of the random weights.
    """
    from library.models.clip_key_map import clip_to_open_clip
    from library.models.unet_key_map import unet_from_diffusers

    path.parent.mkdir(parents=True, exist_ok=True)
    num_tokens = write_tokenizers(path.parent)
    old = {name: tensor.float() for name, tensor in read_tensors(read_header(small)).items()}
    clip_g = draw_tensors(clip_plan(CLIP_G_WIDTH, num_tokens, has_projection=True), seed, "clip_g")
    parts = {
        "model.diffusion_model.": unet_from_diffusers(build_unet(seed).state_dict()),
        _OLD_VAE: rescaled(_under(old, _OLD_VAE)),
        "conditioner.embedders.0.transformer.": _under(old, _OLD_CLIP),
        "conditioner.embedders.1.model.": clip_to_open_clip(clip_g),
    }
    tensors = {
        prefix + name: tensor.float().contiguous() for prefix, part in parts.items() for name, tensor in part.items()
    }
    write_tensors(path, tensors, {"modelspec.architecture": ARCHITECTURE})


def write_tokenizers(folder: Path) -> int:
    """Both are the same here. Returns the number of tokens."""
    counts = [write_clip_tokenizer(folder / name, words()) for name in TOKENIZERS]
    return counts[0]


def rescaled(vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder of SD 1.x, so that SDXL's factor gives latents of the same size.

    Args:
        vae: In published names.
    """
    import math

    changed = dict(vae)
    factor = SD_SCALE / SDXL_SCALE
    half = vae["quant_conv.bias"].shape[0] // 2  # means, then the logarithms of the variances
    for name in ("quant_conv.weight", "quant_conv.bias"):
        changed[name] = vae[name].clone()
        changed[name][:half] *= factor
    changed["quant_conv.bias"][half:] += 2 * math.log(factor)
    changed["post_quant_conv.weight"] = vae["post_quant_conv.weight"] / factor
    return changed


def build_unet(seed: int) -> UNet2DConditionModel:
    """The layout of SDXL with one transformer block in each attention. It predicts nothing at first."""
    import torch
    from diffusers import UNet2DConditionModel

    from library.models.unet_config import wide_heads
    from library.models.vae import norm_groups

    unet = UNet2DConditionModel(
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=WIDTHS,
        norm_num_groups=norm_groups(WIDTHS),
        cross_attention_dim=CLIP_L_WIDTH + CLIP_G_WIDTH,
        attention_head_dim=wide_heads(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_SIZE_WIDTH,
        projection_class_embeddings_input_dim=CLIP_G_WIDTH + 6 * _SIZE_WIDTH,
    )
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            draws = torch_stream(seed, "tiny_sdxl_unet", name)
            bound = 0.0 if name.rpartition(".")[2] in _QUIET else module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                parameter.data = (2 * torch.rand(parameter.shape, generator=draws) - 1) * bound
    return unet


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
