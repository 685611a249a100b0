"""The denoiser of Stable Diffusion 3 and 3.5: MMDiT, two streams of tokens that attend to each other.

Parameter names are those of the published checkpoints. All sizes come from tensor shapes. Arithmetic runs in the
dtype of the weights or of autocast; norms compute their statistics in float32 inside the kernel.

Source: Esser et al. 2024, arXiv:2403.03206, section 4 and appendix; second attention and normed queries and keys:
Stable Diffusion 3.5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from library.errors import CheckpointError
from library.models.attention import Attention, takes_bias, torch_attention
from library.models.position_windows import PositionWindows
from library.models.positions import sincos_table

_EPS = 1e-6
_NATIVE_SIDE = 64  # patches of a 1024 pixel image
_PLAIN_HEAD_DIM = 64  # of models without normed queries and keys, whose shapes do not tell


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Sizes of an MMDiT.

    Attributes:
        depth: Number of joint blocks.
        position_side: Side of the stored table of positions, in patches.
        frequencies: Length of the sinusoidal timestep embedding.
        qk_norm: Queries and keys are normed (SD3.5).
        dual_attention: Blocks whose image stream has a second attention of its own (SD3.5-medium).
    """

    depth: int
    num_heads: int
    head_dim: int = 64
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    context_dim: int = 4096
    pooled_dim: int = 2048
    mlp_ratio: int = 4
    frequencies: int = 256
    position_side: int = 192
    qk_norm: bool = False
    dual_attention: tuple[int, ...] = ()

    @property
    def hidden(self) -> int:
        """Width of the token streams."""
        return self.num_heads * self.head_dim


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> MMDiTConfig:
    """Read the sizes of an MMDiT from its tensors.

    Args:
        shapes: {published name without prefix: shape}.

    Raises:
        CheckpointError: A tensor that tells a size is missing, or the sizes do not go together.
    """
    try:
        hidden, in_channels, patch_size, _ = shapes["x_embedder.proj.weight"]
        norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
        head_dim = norm[0] if norm else _PLAIN_HEAD_DIM
        if hidden % head_dim:
            raise CheckpointError(f"the MMDiT has width {hidden}, which heads of {head_dim} do not divide.")
        return MMDiTConfig(
            depth=1 + max(_block_indices(shapes, "context_block.attn.qkv.weight")),
            num_heads=hidden // head_dim,
            head_dim=head_dim,
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=shapes["final_layer.linear.weight"][0] // patch_size**2,
            context_dim=shapes["context_embedder.weight"][1],
            pooled_dim=shapes["y_embedder.mlp.0.weight"][1],
            mlp_ratio=shapes["joint_blocks.0.x_block.mlp.fc1.weight"][0] // hidden,
            frequencies=shapes["t_embedder.mlp.0.weight"][1],
            position_side=round(shapes["pos_embed"][1] ** 0.5),
            qk_norm=norm is not None,
            dual_attention=tuple(sorted(_block_indices(shapes, "x_block.attn2.qkv.weight"))),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the MMDiT has no tensor {error}. The file is incomplete: download it again, or use another."
        ) from None


def _block_indices(shapes: Mapping[str, tuple[int, ...]], suffix: str) -> set[int]:
    pattern = re.compile(rf"joint_blocks\.(\d+)\.{re.escape(suffix)}")
    indices = {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}
    if not indices and suffix.startswith("context_block"):
        raise KeyError(f"joint_blocks.0.{suffix}")
    return indices


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of a timestep at geometric frequencies from 1 down to 1 / 10000.

    Args:
        timesteps: 0 to 1000. Shape [B].
        channels: An even number.

    Returns:
        Float32. Shape [B, channels].
    """
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(steps * (-math.log(10000) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then x * (1 + scale) + shift.

    Args:
        x: Shape [B, N, D].
        shift: Shape [B, D].
        scale: Shape [B, D].

    Returns:
        In the dtype of x, also under autocast, which would widen it. Shape [B, N, D].
    """
    with torch.autocast(x.device.type, enabled=False):
        if x.shape[0] == 1:  # scale and shift as the norm's own weights: one kernel, half the time
            return F.layer_norm(x, x.shape[-1:], 1 + scale[0], shift[0], _EPS)
        return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=_EPS), 1 + scale[:, None])


def joint_attention(
    *streams: tuple[Tensor, Tensor, Tensor], attend: Attention = torch_attention, bias: Tensor | None = None
) -> list[Tensor]:
    """Attention of all tokens of several streams to each other.

    Args:
        streams: Query, key and value of each stream. Shapes [B, N_i, H, D].
        attend: Computes it.
        bias: Added to the scores of each key. Shape [B, 1, 1, sum of N_i].

    Returns:
        One tensor per stream. Shapes [B, N_i, H * D].
    """
    query, key, value = (torch.cat(parts, dim=1).transpose(1, 2) for parts in zip(*streams, strict=True))
    attended = attend(query, key, value, None if bias is None else bias.to(query.dtype))  # [B, H, sum of N_i, D]
    joined = rearrange(attended, "b h n d -> b n (h d)")
    return list(joined.split([query.shape[1] for query, _, _ in streams], dim=1))


class HeadNorm(nn.RMSNorm):
    """RMS norm over the channels of each head. Shapes [B, N, H, D]."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """The weights of an attention: fused projection to queries, keys and values, and the output projection."""

    def __init__(self, config: MMDiTConfig, *, has_output: bool = True) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        if has_output:
            self.proj = nn.Linear(config.hidden, config.hidden)
        if config.qk_norm:
            self.ln_q = HeadNorm(config.head_dim, eps=_EPS)
            self.ln_k = HeadNorm(config.head_dim, eps=_EPS)
        self.has_norm = config.qk_norm

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [B, N, H * D]. Shapes [B, N, H, D]."""
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b n h d", three=3, h=self.num_heads)
        if self.has_norm:
            query, key = self.ln_q(query), self.ln_k(key)
        return query, key, value


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, hidden: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, ratio * hidden)
        self.fc2 = nn.Linear(ratio * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SingleDiTBlock(nn.Module):
    """One stream's half of a joint block.

    Args:
        config: Sizes.
        has_output: False for the context of the last block, which is only attended to.
        has_second_attention: The stream also attends to itself alone.
    """

    def __init__(self, config: MMDiTConfig, *, has_output: bool = True, has_second_attention: bool = False) -> None:
        super().__init__()
        self.attn = SelfAttention(config, has_output=has_output)
        if has_second_attention:
            self.attn2 = SelfAttention(config)
        if has_output:
            self.mlp = Mlp(config.hidden, config.mlp_ratio)
        self.has_second_attention = has_second_attention
        self.attend: Attention = torch_attention
        self.head_width = config.head_dim
        num_vectors = (9 if has_second_attention else 6) if has_output else 2
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden, num_vectors * config.hidden))
        self.num_vectors = num_vectors

    def modulation(self, activated: Tensor) -> tuple[Tensor, ...]:
        """Shifts, scales and gates, [B, H * D] each, from the conditioning after its SiLU (one for all blocks)."""
        return self.adaLN_modulation[1](activated).chunk(self.num_vectors, dim=1)

    def finish(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """What follows the joint attention: its projection, the second attention, the MLP. Shapes [B, N, H * D]."""
        gate, shift_mlp, scale_mlp, gate_mlp, *second = modulation[2:]
        before = x
        x = torch.addcmul(x, gate[:, None], self.attn.proj(attended))
        if self.has_second_attention:
            shift_second, scale_second, gate_second = second
            heads = self.attn2.heads(modulate(before, shift_second, scale_second))
            (alone,) = joint_attention(heads, attend=self.attend)
            x = torch.addcmul(x, gate_second[:, None], self.attn2.proj(alone))
        return torch.addcmul(x, gate_mlp[:, None], self.mlp(modulate(x, shift_mlp, scale_mlp)))


class JointBlock(nn.Module):
    """Context and image tokens, each with weights of their own, in one attention.

    Args:
        config: Sizes.
        index: Which of the `config.depth` blocks.
    """

    def __init__(self, config: MMDiTConfig, index: int) -> None:
        super().__init__()
        self.is_last = index == config.depth - 1
        self.context_block = SingleDiTBlock(config, has_output=not self.is_last)
        self.x_block = SingleDiTBlock(config, has_second_attention=index in config.dual_attention)

    def forward(
        self, context: Tensor, x: Tensor, activated: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """
        Args:
            context: Shape [B, N, H * D].
            x: Image tokens. Shape [B, h * w, H * D].
            activated: SiLU of the conditioning. Shape [B, H * D].
            bias: Added to the scores of each token in the joint attention. Shape [B, 1, 1, N + h * w].

        Returns:
            Both streams; None for the context of the last block.
        """
        context_modulation = self.context_block.modulation(activated)
        modulation = self.x_block.modulation(activated)
        attended_context, attended = joint_attention(
            self.context_block.attn.heads(modulate(context, *context_modulation[:2])),
            self.x_block.attn.heads(modulate(x, *modulation[:2])),
            attend=self.x_block.attend,
            bias=bias,
        )
        new_context = None if self.is_last else self.context_block.finish(context, attended_context, context_modulation)
        return new_context, self.x_block.finish(x, attended, modulation)


class PatchEmbedder(nn.Module):
    """Patches of latents to tokens."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden, config.patch_size, config.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        return rearrange(self.proj(latents), "b d h w -> b (h w) d").contiguous()


class VectorEmbedder(nn.Module):
    """A vector per sample to the conditioning: linear, SiLU, linear."""

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class OutputLayer(nn.Module):
    """Tokens to patches: modulated norm, linear."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden, 2 * config.hidden))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        return self.linear(modulate(x, *self.adaLN_modulation[1](activated).chunk(2, dim=1)))


class MMDiT(nn.Module):
    """Velocity of the rectified flow from noisy latents, a timestep and the text.

    Attributes:
        joint_blocks: The swappable blocks.
        gradient_checkpointing: Recompute joint blocks in the backward pass instead of keeping their activations.
        checkpoint_every: Then, the first of so many blocks is recomputed; 1 means each.
        run_checkpointed: How it is then run: called with a block and its inputs.
        pos_embed: The table of positions. Beside the buffers, because it stays in host memory in its own precision,
            wherever the model goes; a part of the state all the same. Shape [1, P * P, hidden].

    Build it under `torch.device("meta")` where weights follow.
    """

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        self.run_checkpointed: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = VectorEmbedder(config.frequencies, config.hidden)
        self.y_embedder = VectorEmbedder(config.pooled_dim, config.hidden)
        self.context_embedder = nn.Linear(config.context_dim, config.hidden)
        self.joint_blocks = nn.ModuleList(JointBlock(config, index) for index in range(config.depth))
        self.final_layer = OutputLayer(config)
        self.windows = PositionWindows()
        self.pos_embed = torch.empty(1, config.position_side**2, config.hidden)
        if not self.pos_embed.is_meta:  # where it is, arithmetic would import half of torch for nothing
            native = min(config.position_side, _NATIVE_SIDE)
            self.pos_embed.copy_(sincos_table(config.hidden, config.position_side, native))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        pooled: Tensor,
        *,
        context_bias: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            latents: Scaled, noisy. Shape [B, C, h, w].
            timesteps: 0 to 1000, not rounded. Shape [B].
            context: Token states. Shape [B, N, context_dim].
            pooled: Shape [B, pooled_dim].
            context_bias: Added to the scores of the context's tokens as keys, in every block. Shape [B, N].
            positions: A window of a table of positions; None takes the centre of the stored one.
                Shape [1, h * w / patch ** 2, hidden].

        Returns:
            Velocity, in the dtype of the arithmetic. Shape [B, C, h, w].

        Raises:
            ValueError: A side of the latents is no multiple of the patch size.
            DatasetError: The image is larger than the table of positions.
        """
        patch, dtype = self.config.patch_size, self._arithmetic_dtype(latents.device)
        if latents.shape[2] % patch or latents.shape[3] % patch:
            raise ValueError(f"latent sides must be multiples of {patch}, got {tuple(latents.shape[2:])}")
        height, width = latents.shape[2] // patch, latents.shape[3] // patch
        if positions is None:
            positions = self.windows.centred(self.pos_embed, height, width, latents.device)
        x = self.x_embedder(latents.to(dtype))  # [B, h * w, hidden]
        x = x + positions.to(x)
        frequencies = timestep_embedding(timesteps, self.config.frequencies)
        conditioning = self.t_embedder(frequencies.to(dtype)) + self.y_embedder(pooled.to(dtype))
        activated = F.silu(conditioning)  # what every adaLN begins with
        bias = None if context_bias is None else F.pad(context_bias.to(dtype), (0, x.shape[1]))[:, None, None]
        x = self._run_blocks(self.context_embedder(context.to(dtype)), x, activated, bias)
        patches = self.final_layer(x, activated)  # [B, h * w, p * p * C]
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=patch, q=patch)

    def _run_blocks(self, context: Tensor, x: Tensor, activated: Tensor, bias: Tensor | None) -> Tensor:
        is_checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        for index, block in enumerate(self.joint_blocks):
            if is_checkpointing and index % self.checkpoint_every == 0:
                context, x = self.run_checkpointed(block, context, x, activated, bias)
            else:
                context, x = block(context, x, activated, bias)
        return x

    @property
    def takes_bias(self) -> bool:
        """Whether its attention may be given a bias."""
        return all(takes_bias(block.x_block.attend) for block in self.joint_blocks)  # type: ignore[union-attr, arg-type]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}pos_embed"] = self.pos_embed

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = f"{prefix}pos_embed"
        table = state_dict.pop(name, None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if table is None:
            missing_keys.append(name)
        elif table.shape != self.pos_embed.shape:
            error_msgs.append(f"{name} has the shape {tuple(table.shape)} for {tuple(self.pos_embed.shape)}")
        elif local_metadata.get("assign_to_params_buffers", False):
            self.pos_embed = table
        else:
            self.pos_embed.copy_(table)

    def _arithmetic_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return next(self.parameters()).dtype  # of a layer or, where adapters hold its weight, of its bias
