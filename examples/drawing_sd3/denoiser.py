"""Training the MMDiT of the drawing model and its three text encoders, all from random weights, together.

At first the padding of captions is cut off, which is fast. In the last quarter some steps have all of it, so that the
model draws with padding and without.

Source: Esser et al. 2024, arXiv:2403.03206, section 3 (rectified flow, logit-normal noise levels).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from examples.drawing_sd3.draw import as_tensor, draw, drawing, to_unit
from examples.drawing_sd3.pace import Pace
from examples.tiny_sd3.make import CONTEXT_WIDTH, LATENT_CHANNELS, POOLED_WIDTH, POSITIONS
from library.diffusion.samplers import euler_flow, flow_sigmas
from library.families.sd3.text import encode, join, tokenize
from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.vae import decode_latents, encode_images
from library.rng import torch_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL
    from torch import Tensor

    from library.families.base import Conditioning
    from library.models.tokenizers import TokenizerSet

DEPTH = 3
BATCH = 32
_RATE = 1.5e-3
_NO_CAPTION = 0.1  # share of the pictures, for guidance
_EMA = 0.999
_SHORT = (16, 16)  # tokens of CLIP and T5
_LENGTHS = {_SHORT: 0.75, (77, 77): 0.2, (77, 256): 0.05}  # shares of the steps in the last part of the training
_LAST = 0.75  # where that part begins


class Drawer(nn.Module):
    """Everything that learns here: the MMDiT and the encoders."""

    def __init__(self, mmdit: MMDiT, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.mmdit = mmdit
        self.encoders = nn.ModuleDict(encoders)

    def read(self, tokens: dict[str, Tensor]) -> Conditioning:
        """What the encoders make of token ids."""
        states = encode(dict(self.encoders.items()), tokens, apply_lg_attn_mask=False, apply_t5_attn_mask=False)
        return join(states, context_dim=CONTEXT_WIDTH, pooled_dim=POOLED_WIDTH)


class Lessons(NamedTuple):
    """What is learned from.

    Attributes:
        latents: Shape [N, 16, h, w].
        captions: Number of each picture's caption. Shape [N].
        tokens: Ids of every caption, the empty one first.
    """

    latents: Tensor
    captions: Tensor
    tokens: dict[str, Tensor]


def build_mmdit(seed: int) -> MMDiT:
    """SD3-medium's layout, small. Nothing is predicted at first, and the blocks begin quietly."""
    config = MMDiTConfig(
        depth=DEPTH,
        num_heads=DEPTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        context_dim=CONTEXT_WIDTH,
        pooled_dim=POOLED_WIDTH,
        position_side=POSITIONS,
    )
    torch.manual_seed(seed)
    mmdit = MMDiT(config)
    for name, module in mmdit.named_modules():
        if isinstance(module, nn.Linear):
            gain = 0.1 if "adaLN" in name else 0.0 if name == "final_layer.linear" else 1.0
            nn.init.xavier_uniform_(module.weight, gain)
            nn.init.zeros_(module.bias)
    return mmdit


@torch.no_grad()
def lessons(vae: AutoencoderKL, tokenizers: TokenizerSet, seed: int, count: int) -> Lessons:
    """Draw and encode the pictures."""
    drawings = [drawing(seed, index) for index in range(count)]
    captions = ["", *dict.fromkeys(what.caption for what in drawings)]
    noise = torch_stream(seed, "drawing_sd3_latents")
    latents = []
    for start in range(0, count, 64):
        images = to_unit(as_tensor([draw(what) for what in drawings[start : start + 64]]))
        size = (len(images), LATENT_CHANNELS, images.shape[2] // 8, images.shape[3] // 8)
        latents.append(encode_images(vae, images, torch.randn(size, generator=noise)))
    numbers = {caption: number for number, caption in enumerate(captions)}
    return Lessons(
        torch.cat(latents),
        torch.tensor([numbers[what.caption] for what in drawings]),
        tokenize(tokenizers, captions, t5_length=max(length for _, length in _LENGTHS)),
    )


def train_drawer(drawer: Drawer, learned: Lessons, seed: int, pace: Pace) -> Drawer:
    """Train, and return the moving average of the weights."""
    draws = torch_stream(seed, "drawing_sd3_mmdit")
    average = copy.deepcopy(drawer)
    optimizer = torch.optim.AdamW(drawer.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    for step, progress in enumerate(pace.steps()):
        for group in optimizer.param_groups:
            group["lr"] = pace.rate(_RATE, progress)
        loss = flow_loss(drawer, learned, draws, _text_lengths(progress, draws))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(drawer.parameters(), 1.0)
        optimizer.step()
        _move_average(average, drawer, min(_EMA, (1 + step) / (10 + step)))
        pace.note(loss)
    return average.requires_grad_(False).eval()


def flow_loss(drawer: Drawer, learned: Lessons, draws: torch.Generator, text_lengths: tuple[int, int]) -> Tensor:
    """Squared error of the velocity on a batch."""
    rows = torch.randint(len(learned.latents), (BATCH,), generator=draws)
    is_told = torch.rand(BATCH, generator=draws) >= _NO_CAPTION
    captions = learned.captions[rows] * is_told  # number 0 is empty
    clip, t5 = text_lengths
    lengths = {"clip_l": clip, "clip_g": clip, "t5xxl": t5}
    tokens = {name: learned.tokens[name][captions, :length] for name, length in lengths.items()}
    latents = learned.latents[rows]
    noise = torch.randn(latents.shape, generator=draws)
    sigmas = torch.sigmoid(torch.randn(BATCH, generator=draws))
    mix = sigmas[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        said = drawer.read(tokens)
        velocity = drawer.mmdit(mix * noise + (1 - mix) * latents, sigmas * 1000, said.context, said.pooled)
    return F.mse_loss(velocity.float(), noise - latents)


def _text_lengths(progress: float, draws: torch.Generator) -> tuple[int, int]:
    """Tokens of CLIP and of T5 in a step."""
    if progress < _LAST:
        return _SHORT
    shares = torch.tensor(list(_LENGTHS.values()))
    return list(_LENGTHS)[int(torch.multinomial(shares, 1, generator=draws))]


@torch.no_grad()
def _move_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


@torch.no_grad()
def sample(drawer: Drawer, vae: AutoencoderKL, tokenizers: TokenizerSet, captions: Sequence[str], seed: int) -> Tensor:
    """Draw what the captions say, in 20 steps with guidance. Shape [B, 3, SIDE, SIDE], -1..1."""
    said = drawer.read(tokenize(tokenizers, [*captions, *[""] * len(captions)], t5_length=77))
    noise = torch.randn((len(captions), LATENT_CHANNELS, 8, 8), generator=torch_stream(seed, "drawing_sd3_sample"))

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        return drawer.mmdit(latents, timesteps, said.context, said.pooled)

    return decode_latents(vae, euler_flow(predict, noise, flow_sigmas(20), guidance_scale=3.0))
