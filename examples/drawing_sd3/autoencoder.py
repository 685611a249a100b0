"""Training the autoencoder of the drawing model: 64 px to 8 x 8 x 16 latents and back.

First both halves learn, on pieces of pictures to begin with. Then the encoder's last layer is scaled so that its
latents have the mean and the deviation that the single-file layout of SD3 takes for granted, and the decoder alone
learns on.

Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from examples.drawing_sd3.draw import as_tensor, draw, draw_anything, drawing, to_unit
from examples.drawing_sd3.pace import Pace
from library.models.vae import SD3_SCALE, SD3_SHIFT
from library.rng import torch_stream

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

CHANNELS = 16
BATCH = 8
_RATE = 2e-3
_KL = 1e-6
_PIECE = 32  # pixels a side
_PIECES = 0.6  # what part of the training sees pieces, twice as many at a time
_JOINT = 0.75  # where the decoder begins to learn alone


def build_autoencoder(seed: int) -> AutoencoderKL:
    """An autoencoder with random weights, quiet residual branches and a small variance of its latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=SD3_SCALE,
        shift_factor=SD3_SHIFT,
    )
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            torch.nn.init.zeros_(module.weight)
    with torch.no_grad():  # the second half of the encoder's output is the logarithm of the variance
        vae.encoder.conv_out.weight[:CHANNELS] *= 2
        vae.encoder.conv_out.weight[CHANNELS:] *= 0.1
        vae.encoder.conv_out.bias[CHANNELS:] -= 6
    return vae


def training_pictures(seed: int, count: int) -> Tensor:
    """Half of the model's world, half anything. Shape [count, 3, SIDE, SIDE], uint8."""
    known = [draw(drawing(seed, index)) for index in range(count // 2)]
    return as_tensor([*known, *(draw_anything(seed, index) for index in range(count - count // 2))])


def train_autoencoder(vae: AutoencoderKL, pictures: Tensor, seed: int, pace: Pace) -> None:
    """Train it in place on pictures of `training_pictures`."""
    draws = torch_stream(seed, "drawing_sd3_vae")
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    is_joint = True
    for progress in pace.steps():
        if is_joint and progress > _JOINT:
            is_joint = False
            standardise(vae, pictures[:: -(-len(pictures) // 512)])
            vae.encoder.requires_grad_(False)
        for group in optimizer.param_groups:
            group["lr"] = pace.rate(_RATE, progress)
        loss = reconstruction_loss(vae, _batch(pictures, draws, is_whole=progress > _PIECES), draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        pace.note(loss)
    vae.requires_grad_(False)


def _batch(pictures: Tensor, draws: torch.Generator, *, is_whole: bool) -> Tensor:
    """Pictures, or pieces of more pictures, in -1..1."""
    rows = torch.randint(len(pictures), (BATCH if is_whole else 2 * BATCH,), generator=draws)
    if is_whole:
        return to_unit(pictures[rows])
    top, left = torch.randint(pictures.shape[-1] - _PIECE + 1, (2,), generator=draws).tolist()
    return to_unit(pictures[rows, :, top : top + _PIECE, left : left + _PIECE])


def reconstruction_loss(vae: AutoencoderKL, images: Tensor, draws: torch.Generator) -> Tensor:
    """Absolute and squared error, and a little of the distance of the latents from a standard normal."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=draws)
        decoded = vae.decode(latents).sample.float()
    kl = (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean() / 2
    return F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + _KL * kl


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give each channel of the latents the mean and deviation that make it standard after scaling.

    The decoder's first layer takes it back. Its padding with zeros does not know of the mean, so that the borders
    are off until it has learned on.
    """
    latents = vae.encode(to_unit(pictures)).latent_dist.mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    scale = 1 / (std * SD3_SCALE)  # new = scale * (old - mean) + SD3_SHIFT
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    last.weight[:CHANNELS] *= scale[:, None, None, None]
    last.bias[:CHANNELS] = scale * (last.bias[:CHANNELS] - mean) + SD3_SHIFT
    last.bias[CHANNELS:] += 2 * scale.log()
    offset = mean - SD3_SHIFT / scale
    first.bias += (first.weight * offset[None, :, None, None]).sum((1, 2, 3))
    first.weight /= scale[None, :, None, None]


@torch.no_grad()
def signal_to_noise(vae: AutoencoderKL, pictures: Tensor) -> float:
    """PSNR of reconstructed pictures in decibels."""
    images = to_unit(pictures)
    decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / F.mse_loss(decoded, images)))
