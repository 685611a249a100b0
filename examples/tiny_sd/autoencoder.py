"""The autoencoder of the tiny model: 64 px to 8 x 8 x 4 latents and back, trained on the pictures it is for.

Its latents have mean 0 and deviation 1 once they are scaled as Stable Diffusion 1.x and 2.x scale them.

Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from examples.tiny_sd.pictures import MORE, Variety, large_thing
from examples.tiny_sd3.autoencoder import rate, reconstruction_loss
from examples.tiny_sd3.draw import as_tensor, draw, to_unit
from library.rng import torch_stream

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

AfterStep = Callable[[int, float], None]

CHANNELS = 4
SCALE = 0.18215
_WIDTHS = (16, 32, 32, 32)
_RATE, _BATCH = 3e-3, 16
_DECODER_RATE, _DECODER_BATCH = 1e-3, 8
_LATENT_NOISE = 0.15  # deviation, beside 1 of the scaled latents
_TOGETHER = 50  # pictures
_SMALL_LOGVAR = -6.0  # to begin with
_NUM_STANDARD = 512  # pictures that say how latents are spread


def build_autoencoder(seed: int) -> AutoencoderKL:
    """An autoencoder with random weights, quiet residual branches and a small variance of its latents."""
    from diffusers import AutoencoderKL

    from library.models.vae import norm_groups

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=_WIDTHS,
        layers_per_block=2,
        latent_channels=CHANNELS,
        norm_num_groups=norm_groups(_WIDTHS),
        scaling_factor=SCALE,
        shift_factor=0.0,
    )
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            torch.nn.init.zeros_(module.weight)
    with torch.no_grad():
        for conv in (vae.quant_conv, vae.post_quant_conv):
            conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
            conv.bias.zero_()
        vae.encoder.conv_out.weight[:CHANNELS] *= 2
        vae.encoder.conv_out.weight[CHANNELS:] *= 0.1
        vae.encoder.conv_out.bias[CHANNELS:] += _SMALL_LOGVAR
    return vae


def training_pictures(seed: int, count: int, variety: Variety = MORE) -> Tensor:
    """By default more than the model will draw. Shape [count, 3, 64, 64], uint8."""
    return as_tensor([draw(large_thing(seed, index, variety)) for index in range(count)])


def train_autoencoder(vae: AutoencoderKL, pictures: Tensor, steps: int, seed: int, after_step: AfterStep) -> None:
    """Train it in place, and standardise its latents.

    Args:
        vae: Changed; in evaluation mode afterwards.
        pictures: From `training_pictures`.
        steps: Of the optimizer.
        seed: Of the choice of pictures and of the noise.
        after_step: Given the number of steps that are done, and the loss of the last.
    """

    def loss_of(step: int) -> Tensor:
        draws = torch_stream(seed, "tiny_sd_vae", step)
        rows = torch.randint(len(pictures), (_BATCH,), generator=draws)
        return reconstruction_loss(vae, to_unit(pictures[rows]), draws)

    _train(list(vae.parameters()), loss_of, steps, _RATE, after_step)
    vae.eval().requires_grad_(False)
    standardise(vae, pictures[:_NUM_STANDARD])


def train_decoder(vae: AutoencoderKL, pictures: Tensor, steps: int, seed: int, after_step: AfterStep) -> None:
    """Train its decoder alone, on latents with some noise: those of a U-Net are not exact. As `train_autoencoder`."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in pictures.split(_TOGETHER)])
    vae.decoder.requires_grad_(True)

    def loss_of(step: int) -> Tensor:
        draws = torch_stream(seed, "tiny_sd_decoder", step)
        rows = torch.randint(len(pictures), (_DECODER_BATCH,), generator=draws)
        noise, images = torch.randn(latents[rows].shape, generator=draws), to_unit(pictures[rows])
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(latents[rows] + noise * _LATENT_NOISE / SCALE).sample.float()
        return F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images)

    _train(list(vae.decoder.parameters()), loss_of, steps, _DECODER_RATE, after_step)
    vae.requires_grad_(False)


def _train(
    parameters: list[torch.nn.Parameter],
    loss_of: Callable[[int], Tensor],
    steps: int,
    highest_rate: float,
    after_step: AfterStep,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=highest_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / steps, highest_rate)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after_step(step + 1, float(loss.detach()))


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give each channel of the scaled latents mean 0 and deviation 1, and take it back before the decoder.

    Both are in the convolutions of one pixel between encoder, latents and decoder, so what the autoencoder draws stays.
    """
    latents = vae.encode(to_unit(pictures)).latent_dist.mean
    mean, scale = latents.mean((0, 2, 3)), 1 / (latents.std((0, 2, 3)) * SCALE)
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:CHANNELS] *= scale[:, None, None, None]
    into.bias[:CHANNELS] = scale * (into.bias[:CHANNELS] - mean)
    into.bias[CHANNELS:] += 2 * scale.log()
    back.bias += (back.weight * mean[None, :, None, None]).sum((1, 2, 3))
    back.weight /= scale[None, :, None, None]
