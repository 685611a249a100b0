"""Train the tiny model together with a ControlNet-LLLite, which is thrown away.

What the small U-Net draws hangs on the attention of its way up; what attention says on the way down and in the middle,
where LLLite acts, hardly reaches the picture. After these steps it does, and a new LLLite beside the frozen one learns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from examples.tiny_sd.pictures import large_thing
from examples.tiny_sd3.draw import as_tensor, draw, to_unit
from examples.tiny_sd3.world import SIDE
from examples.tiny_sdxl.painter import Painter
from examples.tiny_sdxl.pairs import colour_map
from examples.tiny_sdxl.words import without_colour
from library.models.unet_key_map import unet_from_diffusers
from library.records import Size, View
from library.tensorfile import read_header, read_tensors, write_tensors
from networks.control_net_lllite import create_network

_PREFIX = "model.diffusion_model."
_RATES = (1e-3, 3e-3)  # of the U-Net and of the LLLite
_BATCH, _NUM_PICTURES = 12, 120
_UNTOLD = 4  # of so many steps one is without colour maps
_LATE = 0.7  # below 1: noisy timesteps, where colours are decided, come more often
_NOTE = 100  # steps


def train_together(model: Path, result: Path, *, steps: int, seed: int, note: Callable[[str], None]) -> None:
    """Write the model with the U-Net that came of it.

    Args:
        model: The trained model, with its tokenizers beside it.
        result: The file to write.
        steps: Of the optimizer.
        seed: Of the pictures and of all draws.
        note: Given a line now and then.
    """
    torch.manual_seed(seed)
    painter = Painter(model)
    unet, data = painter.unet.requires_grad_(True), _Data(painter, seed)
    network = create_network(1.0, 64, None, None, None, unet, cond_emb_dim="32")
    network.apply_to()
    groups = [
        {"params": list(part.parameters()), "lr": rate} for part, rate in zip((unet, network), _RATES, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    factor = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 10) * max(0.1, 1 - step / steps)
    )
    begun = time.monotonic()
    for step in range(steps):
        rows = torch.randint(_NUM_PICTURES, (_BATCH,))
        network.set_condition(None if step % _UNTOLD == _UNTOLD - 1 else data.maps[rows])
        loss = data.loss(painter, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        factor.step()
        if (step + 1) % _NOTE == 0:
            note(f"together: step {step + 1}, loss {loss.item():.4f}, {time.monotonic() - begun:.0f} s")
    network.detach_all()
    trained = {_PREFIX + name: tensor.detach() for name, tensor in unet_from_diffusers(unet.state_dict()).items()}
    header = read_header(model)
    write_tensors(result, {**read_tensors(header), **trained}, header.metadata)


class _Data:
    """Latents, colour maps and texts of the pictures, whose captions do not name the colour of the thing."""

    def __init__(self, painter: Painter, seed: int) -> None:
        scenes = [large_thing(seed, index) for index in range(_NUM_PICTURES)]
        pictures = [draw(what) for what in scenes]
        images = to_unit(as_tensor(pictures))
        self.maps = to_unit(as_tensor([colour_map(picture) for picture in pictures]))
        captions = [without_colour(what.caption, what.things[0].colour) for what in scenes]
        family = painter.family
        with torch.no_grad():
            noise = torch.randn(_NUM_PICTURES, family.latent_channels, SIDE // 8, SIDE // 8)
            self.latents = family.encode_images(painter.vae, images, noise)
            states = family.encode_text(painter.encoders, family.tokenize(painter.tokenizers, captions))
            view = View.whole(Size(SIDE, SIDE))
            self.told = family.place(family.join_text(states, painter.unet), [view] * _NUM_PICTURES)

    def loss(self, painter: Painter, rows: Tensor) -> Tensor:
        """Mean squared error of the pictures of these numbers. Shape []."""
        objective, latents = painter.family.objective(), self.latents[rows]
        timesteps = (torch.rand(len(rows)) ** _LATE * 1000).clamp(1, 999).floor()
        draw_of_noise, noise = objective.at(timesteps), torch.randn(latents.shape)
        noisy = objective.corrupt(latents, noise, draw_of_noise)
        predicted = painter.family.predict(painter.unet, noisy, draw_of_noise.timesteps, self.told.take(rows, rows))
        terms = objective.terms(predicted, latents, noise, noisy, draw_of_noise)
        return (terms.estimate - terms.target).square().mean()
