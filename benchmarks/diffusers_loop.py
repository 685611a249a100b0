"""A training step of diffusers' models with peft's LoRA, as diffusers' own example scripts make it.

The frozen model is in bf16, the LoRA in float32 under autocast. Needs the packages diffusers and peft; both are
imported when a step is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain_loop import MAX_GRAD_NORM, Example, fused_adamw
from library.models.mmdit import MMDiTConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def diffusers_step(
    config: MMDiTConfig,
    example: Example,
    *,
    rank: int,
    is_attention_alone: bool,
    recomputes: bool,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = fused_adamw,
) -> Callable[[], None]:
    """Forward, backward, clipping and the optimizer.

    Args:
        config: Sizes.
        example: What is trained on, on the device where the model is made; its context is in bf16.
        rank: Of each LoRA; query, key and value are three layers there.
        is_attention_alone: LoRA beside the projections of attention, of both streams; else beside every linear layer
            of the blocks.
        recomputes: Gradient checkpointing.
        make_optimizer: Gets what trains.

    Raises:
        ImportError: diffusers or peft is not installed.
    """
    device = example.latents.device
    model = _transformer(config, device)
    targets = list(ATTENTION) if is_attention_alone else _linear_layers(model)
    context, pooled = example.context, example.pooled

    def loss() -> Tensor:
        noisy_latents, timesteps, target = example.noisy()
        with torch.autocast(device.type, torch.bfloat16):
            (prediction,) = model(noisy_latents.to(context.dtype), context, pooled, timesteps, return_dict=False)
        return F.mse_loss(prediction.float(), target)

    return peft_step(model, loss, targets, rank=rank, recomputes=recomputes, make_optimizer=make_optimizer)


def peft_step(
    model: Any,
    loss: Callable[[], Tensor],
    targets: list[str],
    *,
    rank: int,
    recomputes: bool,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> Callable[[], None]:
    """Forward, backward, clipping and the optimizer of a model of diffusers.

    Args:
        model: Frozen.
        loss: Of the model.
        targets: Names, or ends of names, of the layers that get a LoRA.
        rank: Of each.
        recomputes: Gradient checkpointing.
        make_optimizer: Gets what trains.

    Raises:
        ImportError: peft is not installed.
    """
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if recomputes:
        model.enable_gradient_checkpointing()
    optimizer = make_optimizer(trained)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _transformer(config: MMDiTConfig, device: torch.device) -> Any:
    """Frozen, with random weights."""
    from diffusers import SD3Transformer2DModel

    with in_bfloat16(), torch.device(device):
        model = SD3Transformer2DModel(
            sample_size=128,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.depth,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.context_dim,
            caption_projection_dim=config.hidden,
            pooled_projection_dim=config.pooled_dim,
            pos_embed_max_size=config.position_side,
            dual_attention_layers=config.dual_attention,
            qk_norm="rms_norm" if config.qk_norm else None,
        )
    model.pos_embed.to(torch.bfloat16)  # which diffusers makes in float32, and casts when it reads a file
    return model.requires_grad_(False).train()


@contextmanager
def in_bfloat16() -> Iterator[None]:
    """A context in which modules are made in bf16."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def _linear_layers(model: nn.Module) -> list[str]:
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in names if name.startswith("transformer_blocks.")]
