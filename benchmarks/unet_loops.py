"""Steps that ours is compared with: a hand-written loop over our U-Net, and diffusers' U-Net with peft."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diffusers_loop import in_bfloat16, peft_step
from benchmarks.plain_loop import fused_adamw, lora_step
from benchmarks.random_unet import random_unet
from benchmarks.unet_sizes import NUM_SIZES, UnetSize

NUM_TIMESTEPS = 1000
PIXELS_PER_CELL = 8
CLIP_TOKENS = 77


class UnetExample:
    """Pictures as the model sees them.

    Args:
        latents: Shape [B, 4, h, w], float32.
        context: Shape [B, N, D].
        pooled: Shape [B, P]; None where the model is told nothing beside the text.
        side: Of the pictures, in pixels.
    """

    def __init__(self, latents: Tensor, context: Tensor, pooled: Tensor | None, side: int) -> None:
        self.latents, self.context = latents, context
        self.added: Mapping[str, Tensor] | None = None
        if pooled is not None:
            sizes = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32, device=latents.device)
            self.added = {"text_embeds": pooled, "time_ids": sizes.expand(len(latents), NUM_SIZES)}
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMESTEPS, device=latents.device) ** 2
        self.kept = (1 - betas).cumprod(0)

    def noisy(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents at random timesteps, the timesteps, and the noise, which has to be found."""
        noise = torch.randn_like(self.latents)
        timesteps = torch.randint(NUM_TIMESTEPS, (len(noise),), device=noise.device)
        kept = self.kept[timesteps].view(-1, 1, 1, 1)
        return kept.sqrt() * self.latents + (1 - kept).sqrt() * noise, timesteps, noise

    def loss(self, model: Any) -> Tensor:
        """Of the noise."""
        noisy_latents, timesteps, target = self.noisy()
        (prediction,) = model(
            noisy_latents.to(self.context.dtype),
            timesteps,
            self.context,
            added_cond_kwargs=self.added,
            return_dict=False,
        )
        return F.mse_loss(prediction.float(), target)


def random_example(size: UnetSize, *, side: int, batch: int, dtype: torch.dtype, device: torch.device) -> UnetExample:
    """Random latents and text states."""
    cells = side // PIXELS_PER_CELL
    latents = torch.randn(batch, 4, cells, cells, device=device)
    context = torch.randn(batch, CLIP_TOKENS, size.context, device=device, dtype=dtype)
    pooled = torch.randn(batch, size.pooled, device=device, dtype=dtype) if size.pooled else None
    return UnetExample(latents, context, pooled, side)


def attention_layers(model: nn.Module) -> Iterator[str]:
    """The layers that a LoRA is beside: all of the attention blocks."""
    for name, module in model.named_modules():
        if ".attentions." in name and isinstance(module, (nn.Linear, nn.Conv2d)):
            yield name


def unet_step(
    size: UnetSize,
    example: UnetExample,
    *,
    rank: int,
    is_diffusers: bool,
    recomputes: bool,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = fused_adamw,
) -> Callable[[], None]:
    """Forward, backward, clipping and the optimizer, with LoRA beside the layers of the attention blocks.

    Args:
        size: Of the model.
        example: What is trained on, on the device where the model is made; its context is in bf16.
        rank: Of each LoRA.
        is_diffusers: With diffusers' U-Net and peft; else the hand-written loop over ours.
        recomputes: Gradient checkpointing.
        make_optimizer: Gets what trains.

    Raises:
        ImportError: A package that is needed is not installed.
    """
    device = example.latents.device
    if not is_diffusers:
        model = random_unet(size, torch.bfloat16, device).train()
        model.gradient_checkpointing = recomputes
        return lora_step(model, example, rank=rank, layers=attention_layers(model), make_optimizer=make_optimizer)
    theirs = _diffusers_unet(size, device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return example.loss(theirs)

    targets = list(attention_layers(theirs))
    return peft_step(theirs, loss, targets, rank=rank, recomputes=recomputes, make_optimizer=make_optimizer)


def _diffusers_unet(size: UnetSize, device: torch.device) -> Any:
    """Frozen, with random weights."""
    from diffusers import UNet2DConditionModel

    with in_bfloat16(), torch.device(device):
        return UNet2DConditionModel(**size.config()).requires_grad_(False).train()
