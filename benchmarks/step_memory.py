"""What forward and backward pass of an MMDiT take beside its weights, counted on tensors without numbers.

The passes are the real ones, by torch's autograd, over fake tensors (meta tensors that know a device), and
`LiveMemory` counts what lives. Attention is torch's fused kernel, which keeps its inputs, its output and one number for
each row; the table of scores, which a plain product of matrices would keep, exists on no GPU either.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from library.memory.fused_backward import BackwardParts, by_block, each_alone
from library.memory.live_memory import LiveMemory
from library.models.mmdit import MMDiT, MMDiTConfig

CLIP_TOKENS, T5_TOKENS = 77, 256
PIXELS, PIXELS_PER_CELL = 1024, 8


@dataclass(frozen=True)
class Passes:
    """Bytes beside weights and optimizer.

    Attributes:
        kept: What the forward pass keeps for the backward pass.
        peak: The most at any time of both passes, gradients included.
    """

    kept: int
    peak: int


@dataclass(frozen=True)
class Work:
    """What a step does.

    Attributes:
        dtype: Of the weights. Arithmetic is in bf16.
        recomputes: Gradient checkpointing.
        parts: Deals out the parameters where the optimizer steps inside the backward pass.
        side: Of the square picture, in pixels.
        num_tokens: Of the text: CLIP and T5 together.
    """

    dtype: torch.dtype
    recomputes: bool
    parts: Callable[[MMDiT], list[list[Parameter]]] | None = None
    side: int = PIXELS
    num_tokens: int = CLIP_TOKENS + T5_TOKENS


def weights_alone(model: MMDiT) -> list[list[Parameter]]:
    """As --fused_backward_pass has it."""
    return each_alone(model.parameters())


def blocks_alone(model: MMDiT) -> list[list[Parameter]]:
    """As --blockwise_fused_optimizers has it."""
    return by_block([model], model.parameters())


def count_passes(config: MMDiTConfig, work: Work, *, is_fake: bool = True) -> Passes:
    """Run both passes with one picture.

    Args:
        config: Sizes of the model.
        work: What is done.
        is_fake: Without numbers; else really, on the CPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() if is_fake else nullcontext():
        model = make_model(config, work.dtype)
        model.gradient_checkpointing = work.recomputes
        inputs = _inputs(config, work)
        listener = BackwardParts(work.parts(model), lambda _: None) if work.parts else None
        live = LiveMemory([*model.parameters(), model.pos_embed, *inputs])
        with live:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                prediction = model(*inputs)
            kept = live.now
            with listener.listening() if listener else nullcontext():
                (prediction.float() - inputs[0].float()).square().mean().backward()
        return Passes(kept, live.peak)


def make_model(config: MMDiTConfig, dtype: torch.dtype) -> MMDiT:
    """An MMDiT on the device that is in force, its table of positions in fp16 as the published files have it."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = MMDiT(config)
    finally:
        torch.set_default_dtype(default)
    model.pos_embed = model.pos_embed.half()
    return model


def _inputs(config: MMDiTConfig, work: Work) -> tuple[Tensor, ...]:
    """Noisy latents, timestep, context and pooled text of one picture."""
    cells = work.side // PIXELS_PER_CELL
    shapes = ((1, config.in_channels, cells, cells), (1, work.num_tokens, config.context_dim), (1, config.pooled_dim))
    latents, context, pooled = (torch.ones(shape, dtype=torch.bfloat16) for shape in shapes)
    return latents, torch.full((1,), 500.0), context, pooled


def block_numbers(model: nn.Module) -> tuple[int, int]:
    """How many numbers the largest joint block has, and all that is outside of blocks."""
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in model.joint_blocks]  # type: ignore[union-attr]
    return max(blocks), sum(parameter.numel() for parameter in model.parameters()) - sum(blocks)
