"""Training the autoencoder of the small model that draws: 64 px to 8 x 8 x 16 latents and back.

First both halves learn, on pieces of pictures to begin with. Then the encoder's last layer is scaled so that its
latents have the mean and the deviation that the single-file layout of SD3 takes for granted (it says neither), and the
decoder alone learns on; a second course of the decoder alone changes no latents either. The draws of a step depend on
its number only: a training that was cut off goes on as if it had not been.

Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from examples.tiny_sd3.draw import as_tensor, draw, draw_anything, to_unit
from examples.tiny_sd3.world import scene
from library.models.vae import SD3_SCALE, SD3_SHIFT
from library.rng import torch_stream
from library.tensorfile import save_with_torch, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import AutoencoderKL
    from torch import Tensor

CHANNELS = 16
BATCH = 8
_RATE = 2e-3
_DECODER_RATE = 1e-3  # where the decoder alone learns from the beginning
_WARMUP = 0.02
_KL = 1e-6
_PIECE = 32  # pixels a side
_PIECES = 0.6  # what part of the training sees pieces, twice as many at a time
_JOINT = 0.75  # where the decoder begins to learn alone
_NUM_STANDARD = 512  # pictures that say how latents are spread


@dataclass
class Course:
    """Where a training of the autoencoder is.

    Attributes:
        vae: Learns.
        num_steps: In all.
        name: Of the course's draws.
        has_encoder: Both halves learn until the last quarter; otherwise the decoder alone does.
        step: Done.
        seconds: Spent.
    """

    vae: AutoencoderKL
    num_steps: int
    name: str = "tiny_sd3_vae"
    has_encoder: bool = True
    step: int = 0
    seconds: float = 0.0
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.vae.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def save(self, path: Path) -> None:
        """Write it, so that `load` goes on from here."""
        state = {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "seconds": self.seconds}
        write_atomically(path, lambda place: save_with_torch(state, place))

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


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
    known = [draw(scene(seed, index)) for index in range(count // 2)]
    return as_tensor([*known, *(draw_anything(seed, index) for index in range(count - count // 2))])


def train_autoencoder(course: Course, pictures: Tensor, seed: int, after_step: Callable[[float], None]) -> None:
    """Train it in place, from where the course is to its end.

    Args:
        course: Changed.
        pictures: From `training_pictures`.
        seed: Of pieces and noise.
        after_step: Given the loss when a step is done.
    """
    vae, begun = course.vae, time.monotonic() - course.seconds
    alone = round(_JOINT * course.num_steps) if course.has_encoder else -1  # the step that the encoder rests from
    vae.encoder.requires_grad_(course.step <= alone)
    while course.step < course.num_steps:
        if course.step == alone:
            standardise(vae, pictures[:: max(1, len(pictures) // _NUM_STANDARD)])
            vae.encoder.requires_grad_(False)
        progress = course.step / course.num_steps
        for group in course.optimizer.param_groups:
            group["lr"] = rate(progress, _RATE if course.has_encoder else _DECODER_RATE)
        draws = torch_stream(seed, course.name, course.step)
        is_whole = progress > _PIECES or not course.has_encoder
        loss = reconstruction_loss(vae, _batch(pictures, draws, is_whole=is_whole), draws)
        course.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        course.optimizer.step()
        course.step, course.seconds = course.step + 1, time.monotonic() - begun
        after_step(float(loss.detach()))


def rate(progress: float, highest: float) -> float:
    """The learning rate: a short rise, then half a cosine down."""
    return highest * min(1, progress / _WARMUP + 0.01) * (1 + math.cos(math.pi * progress)) / 2


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
    """PSNR of reconstructed pictures in decibels. `pictures`: uint8 [N, 3, H, W]."""
    errors = []
    for part in pictures.split(64):
        images = to_unit(part)
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        errors.append((decoded - images).square().mean((1, 2, 3)))
    return float(10 * torch.log10(4 / torch.cat(errors).mean()))
