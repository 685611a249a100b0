"""Steps that ours is compared with on a GPU: a hand-written loop over our MMDiT, and diffusers' transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from benchmarks.diffusers_loop import diffusers_step
from benchmarks.gpu_rows import Training
from benchmarks.plain_loop import LEARNING_RATE, Example, fused_adamw, lora_step
from benchmarks.random_model import Sizes, position_table, random_mmdit
from benchmarks.step_memory import PIXELS_PER_CELL
from library.families.sd3.text import join
from library.models.mmdit import MMDiTConfig
from library.models.positions import centred_window


def other_step(
    sizes: Sizes,
    model: str,
    training: Training,
    *,
    side: int,
    batch: int,
    device: torch.device,
    is_diffusers: bool,
    recomputes: bool,
) -> Callable[[], None]:
    """A step over random latents and text states that lie on the device.

    Args:
        sizes: Has the model.
        model: Its name.
        training: A LoRA.
        side: Of the pictures, in pixels.
        batch: Pictures.
        device: Where it runs.
        is_diffusers: Else the hand-written loop.
        recomputes: Gradient checkpointing.

    Raises:
        ImportError: A package that is needed is not installed.
    """
    config = sizes.models[model]
    example = _example(sizes, config, side, batch, device)
    optimizer = _adamw8bit if training.is_in_8_bits else fused_adamw
    if is_diffusers:
        return diffusers_step(
            config,
            example,
            rank=training.rank,
            is_attention_alone=training.is_attention_alone,
            recomputes=recomputes,
            make_optimizer=optimizer,
        )
    denoiser = random_mmdit(config, torch.bfloat16, device).train()
    denoiser.pos_embed = torch.empty(0, device=device)  # a loop of its own needs one window of it
    denoiser.gradient_checkpointing = recomputes
    layers = training.ranks(config)
    return lora_step(denoiser, example, rank=training.rank, layers=layers, make_optimizer=optimizer)


def _example(sizes: Sizes, config: MMDiTConfig, side: int, batch: int, device: torch.device) -> Example:
    states = sizes.text_states(config, batch, torch.bfloat16)
    text = join(states, context_dim=config.context_dim, pooled_dim=config.pooled_dim)
    cells = side // PIXELS_PER_CELL
    patches = cells // config.patch_size
    latents = torch.randn(batch, config.in_channels, cells, cells, device=device)
    positions = centred_window(position_table(config), patches, patches).bfloat16().to(device)
    return Example(latents, text.context.to(device), text.pooled.to(device), positions)


def _adamw8bit(trained: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    made: Any = AdamW8bit(trained, lr=LEARNING_RATE)
    return made
