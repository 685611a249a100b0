"""The denoiser of Stable Diffusion 1, 2 and XL: diffusers' U-Net as a row of blocks.

Names of parameters are those of diffusers. Arithmetic runs in the dtype of the weights or of autocast; norms stay in
it, and compute their statistics in float32 inside the kernel.

Source: Ronneberger et al. 2015, arXiv:1505.04597; Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023,
arXiv:2307.01952.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from library.models.attention import torch_attention
from library.models.unet_config import unet_config

__all__ = ["UNet", "unet_config"]


class UNet(UNet2DConditionModel):  # type: ignore[misc]
    """Noise or velocity from noisy latents, a timestep and the text.

    Attributes:
        num_streams: How many inputs of a block, the first ones, are what the block before it gave.
        gradient_checkpointing: Recompute blocks in the backward pass instead of keeping their activations.
        checkpoint_every: Then, the first of so many blocks is recomputed; 1 means each.
        run_checkpointed: How it is then run: called with what computes a block, and its inputs.

    Each layer that attends has an `attend`, see `library/models/attention.py`.
    Build it under `torch.device("meta")` where weights follow.

    Args:
        config: See `unet_config`.
    """

    num_streams = 1
    to = nn.Module.to  # that of diffusers warns of what it would keep in float32, which is nothing here

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        self.run_checkpointed: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
        attending = _Attending()
        for module in list(self.modules()):
            if isinstance(module, Attention):
                module.attend = torch_attention
                module.head_width = module.inner_dim // module.heads
                module.set_processor(attending)
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, GroupNorm(child.num_groups, child.num_channels, child.eps))
                elif isinstance(child, nn.LayerNorm):
                    setattr(module, name, LayerNorm(list(child.normalized_shape), child.eps))
                elif isinstance(child, TimestepEmbedding):
                    setattr(module, name, Embedder(child.linear_1.in_features, child.linear_1.out_features))
        for block in self.block_row():
            block.register_forward_pre_hook(_as_one_use)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **named: Any,
    ) -> Any:
        """
        Args:
            sample: Scaled, noisy latents. Shape [B, C, h, w].
            timestep: 0 to 999. Shape [B].
            encoder_hidden_states: Token states. Shape [B, N, cross_attention_dim].
            added_cond_kwargs: Of SDXL: "text_embeds", pooled, shape [B, D]; and "time_ids", original height and width,
                top and left of the crop, target height and width, shape [B, 6].
            return_dict: False gives a tuple of one tensor.
            named: Others of diffusers.

        Returns:
            As diffusers' one: `sample`, in the dtype of the arithmetic. Shape [B, C, h, w].
        """
        dtype = self._arithmetic_dtype(sample.device)
        with self._recomputing():
            return super().forward(
                sample.to(dtype),
                timestep,
                encoder_hidden_states.to(dtype),
                added_cond_kwargs=added_cond_kwargs,
                return_dict=return_dict,
                **named,
            )

    def block_row(self) -> list[nn.Module]:
        """The blocks, in the order in which they compute: residual and transformer blocks, and changes of size."""
        levels = (*self.down_blocks, self.mid_block, *self.up_blocks)
        return [block for level in levels for block in _blocks_of(level)]

    def block_stacks(self) -> list[tuple[int, nn.ModuleList]]:
        """The transformer blocks of each attention, in the order in which they compute, and how often the picture is
        halved there."""
        last = len(self.down_blocks) - 1
        halved = (*range(last + 1), last, *range(last, -1, -1))
        levels = (*self.down_blocks, self.mid_block, *self.up_blocks)
        return [
            (number, attention.transformer_blocks)
            for number, level in zip(halved, levels, strict=True)
            for attention in getattr(level, "attentions", None) or ()
        ]

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """A context in which chosen blocks run as `run_checkpointed` runs them. What wraps a block lies inside."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            yield
            return
        chosen = self.block_row()[:: self.checkpoint_every]
        own = [block.__dict__.get("forward") for block in chosen]
        for block in chosen:
            block.forward = partial(self.run_checkpointed, block.forward)
        try:
            yield
        finally:
            for block, forward in zip(chosen, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def _arithmetic_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return next(self.parameters()).dtype  # of a layer or, where adapters hold the layers' weights, of a norm


class Embedder(TimestepEmbedding):  # type: ignore[misc]
    """As diffusers has it, under a name of its own: networks that choose layers by the names of classes as well as by
    those of modules would take these twice (lycoris-lora 4.1)."""


class GroupNorm(nn.GroupNorm):
    """Group norm in the dtype of x, also under autocast, which would widen it. Shapes [B, C, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm in the dtype of x, also under autocast, which would widen it. Shapes [B, N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class _Attending:
    """How a layer of diffusers attends: by its `attend`."""

    def __call__(
        self,
        layer: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            layer: With projections and `attend`.
            hidden_states: Shape [B, N, H * D].
            encoder_hidden_states: What is attended to; None for the same. Shape [B, M, context].
            attention_mask: None.
            temb: Not used.

        Returns:
            Shape [B, N, H * D].

        Raises:
            ValueError: A mask is given.
        """
        if attention_mask is not None:
            raise ValueError("attention of a U-Net takes no mask")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        sources = ((layer.to_q, hidden_states), (layer.to_k, context), (layer.to_v, context))
        query, key, value = (rearrange(project(x), "b n (h d) -> b h n d", h=layer.heads) for project, x in sources)
        attended = layer.attend(query, key, value, None)  # [B, H, N, D]
        output: Tensor = layer.to_out[0](rearrange(attended, "b h n d -> b n (h d)"))
        return output


def _as_one_use(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of a block, the first of which counts as used once: what the block adds to its gradient is summed up by
    itself, and not together with what comes over a skip. So sums are rounded alike, whatever a block is wrapped in.
    """
    first, *others = inputs
    return (first.view_as(first), *others)


def _blocks_of(level: Any) -> Iterator[nn.Module]:
    """Those of a level: residual blocks, and attentions behind each, in the middle behind all but the last."""
    attentions = list(getattr(level, "attentions", None) or ())
    for resnet, attention in zip_longest(level.resnets, attentions):
        yield resnet
        if attention is not None:
            yield from attention.transformer_blocks
    yield from getattr(level, "downsamplers", None) or ()
    yield from getattr(level, "upsamplers", None) or ()
