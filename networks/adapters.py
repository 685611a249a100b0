"""LoRA for one linear or convolution layer, held beside the model.

Source: Hu et al. 2021, arXiv:2106.09685. Rank and module dropout: as the LyCORIS project defines them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from networks.layer_adapter import LayerAdapter
from networks.lora_linear import compute_dtype, frozen_weight, lora_linear


@dataclass(frozen=True)
class Dropouts:
    """What is left out at random while training; all are chances in [0, 1).

    Attributes:
        neuron: Single values between the two factors.
        rank: Whole ranks, drawn for each sample.
        module: The whole adapter, drawn for each forward pass.
    """

    neuron: float = 0.0
    rank: float = 0.0
    module: float = 0.0


NO_DROPOUT = Dropouts()


@dataclass(frozen=True)
class Factors:
    """What a file holds of one adapter: the change of the weight is alpha / rank times up @ down.

    Attributes:
        down: Shape [rank, in], for a convolution [rank, in, kernel height, kernel width].
        up: Shape [out, rank], for a convolution [out, rank, 1, 1].
        alpha: See above.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of `down`."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank"""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The change of the weight at multiplier 1, in float32 (or float64) and the shape of the weight."""
        down, up = (t if t.dtype == torch.float64 else t.float() for t in (self.down, self.up))
        return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:]) * self.scale


class Factor(nn.Module):
    """One matrix of an adapter, so that its parameter is called `<name>.weight`."""

    def __init__(self, *shape: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device=device))


class LoraAdapter(LayerAdapter):
    """A low-rank addition to one layer.

    With `num_parts` above 1 the outputs of the layer (query, key and value, one after another) have their own pair
    of factors each. Together these are one pair of `num_parts` times the rank: the rows of `down` stacked, `up`
    block-diagonal. That is how they are computed and stored.

    Args:
        name: Name in a file, for instance lora_unet_joint_blocks_0_x_block_attn_qkv.
        target: An nn.Linear or nn.Conv2d (or a subclass, such as a quantised linear layer).
        rank: Rank of each pair of factors.
        alpha: The output is scaled by multiplier * alpha / rank.
        multiplier: See alpha.
        num_parts: See above; only for linear layers.
        dropouts: Act in training mode only.
        device: Where the factors are made.

    The factors hold no values until `reset` or `load` is called.
    """

    def __init__(
        self,
        name: str,
        target: nn.Module,
        rank: int,
        alpha: float,
        *,
        multiplier: float = 1.0,
        num_parts: int = 1,
        dropouts: Dropouts = NO_DROPOUT,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(name, target, rank, alpha, multiplier=multiplier)
        self.num_parts, self.dropouts = num_parts, dropouts
        down, up = _factor_shapes(target, rank, num_parts)
        if num_parts == 1:
            self.lora_down: nn.Module = Factor(*down, device=device)
            self.lora_up: nn.Module = Factor(*up, device=device)
        else:
            self.lora_down = nn.ModuleList(Factor(*down, device=device) for _ in range(num_parts))
            self.lora_up = nn.ModuleList(Factor(*up, device=device) for _ in range(num_parts))

    @property
    def scale(self) -> float:
        """alpha / rank; the multiplier is not in it."""
        return self.alpha / self.rank

    def reset(self, generator: Generator | None = None) -> None:
        """Start values: `down` uniform as nn.Linear has it, `up` zero, so that nothing is added yet."""
        for down, up in zip(self._weights(self.lora_down), self._weights(self.lora_up), strict=True):
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(up)

    def pair(self) -> tuple[Tensor, Tensor]:
        """`down` and `up`, joined where there are parts. Gradients flow through."""
        if self.num_parts == 1:
            return self.lora_down.weight, self.lora_up.weight  # type: ignore[return-value]
        return torch.cat(self._weights(self.lora_down)), torch.block_diag(*self._weights(self.lora_up))

    def pair_of_pass(self) -> tuple[Tensor, Tensor]:
        """What `forward` computes with."""
        return self.pair()

    def factors(self) -> Factors:
        """What is written to a file, detached. Its alpha counts all parts, so that every reader gets this strength."""
        down, up = self.pair()
        return Factors(down.detach(), up.detach(), self.alpha * self.num_parts)

    def saved(self) -> dict[str, Tensor]:
        """See `LayerAdapter`."""
        factors = self.factors()
        alpha = torch.tensor(factors.alpha, dtype=torch.float32)
        return {".lora_down.weight": factors.down, ".lora_up.weight": factors.up, ".alpha": alpha}

    @torch.no_grad()
    def load(self, values: Factors) -> None:
        """Take over values of a file; shapes and alpha must have been compared (networks/weights.py)."""
        downs, ups = [values.down], [values.up]
        if self.num_parts > 1:
            downs, ups = _split(values, self.num_parts, self.rank)
        for parameter, value in zip(self._weights(self.lora_down), downs, strict=True):
            parameter.copy_(value.reshape(parameter.shape))
        for parameter, value in zip(self._weights(self.lora_up), ups, strict=True):
            parameter.copy_(value.reshape(parameter.shape))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output plus the addition. Shapes as those of the layer."""
        layer = self.target
        if not self.enabled or self.multiplier == 0 or self._skips_this_pass():
            return self.base_forward(x, *args, **kwargs)
        down, up = self.pair_of_pass()
        strength = self.multiplier * self.scale
        if isinstance(layer, nn.Conv2d):
            return self._add_to_image(self.base_forward(x, *args, **kwargs), x, down, up, strength)
        mask = self._mask((*x.shape[:-1], down.shape[0]), x.device)
        if self._replaced is None and (weight := frozen_weight(layer)) is not None:
            return lora_linear(x, weight, layer.bias, down, up, strength, mask)  # type: ignore[arg-type]
        base = self.base_forward(x, *args, **kwargs)
        inner = F.linear(x.to(compute_dtype(x)), down.to(compute_dtype(x))) * strength
        return base + F.linear(inner if mask is None else inner * mask, up.to(inner.dtype)).to(base.dtype)

    def _add_to_image(self, base: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float) -> Tensor:
        layer, dtype = self.target, compute_dtype(x)
        inner = F.conv2d(x.to(dtype), down.to(dtype), None, layer.stride, layer.padding, layer.dilation) * strength  # type: ignore[call-overload]
        mask = self._mask(tuple(inner.shape), x.device)
        return base + F.conv2d(inner if mask is None else inner * mask, up.to(dtype)).to(base.dtype)

    def _skips_this_pass(self) -> bool:
        if not self.training or not self.dropouts.module or torch.compiler.is_compiling():
            return False
        return bool(torch.rand(()) < self.dropouts.module)

    def _mask(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Dropout as factors for the rank-sized product [B, ..., rank] or [B, rank, h, w]; None where none is due."""
        drops_all = self.dropouts.module if torch.compiler.is_compiling() else 0.0  # a graph cannot skip the adapter
        if not self.training or not (self.dropouts.neuron or self.dropouts.rank or drops_all):
            return None
        mask = torch.ones(shape, device=device)
        if drops_all:
            mask = mask * (torch.rand((), device=device) >= drops_all)
        if neuron := self.dropouts.neuron:
            mask = mask * (torch.rand(shape, device=device) >= neuron) / (1 - neuron)
        if rank := self.dropouts.rank:
            channel = 1 if isinstance(self.target, nn.Conv2d) else len(shape) - 1
            per_sample = [size if axis in (0, channel) else 1 for axis, size in enumerate(shape)]
            mask = mask * (torch.rand(per_sample, device=device) >= rank) / (1 - rank)
        return mask

    @torch.no_grad()
    def changed_weight(self, values: Factors | None, device: torch.device | str) -> Tensor:
        """See `LayerAdapter`."""
        weight: Tensor = self.target.weight  # type: ignore[assignment]
        given = values or self.factors()
        delta = Factors(given.down.to(device), given.up.to(device), given.alpha).delta() * self.multiplier
        return weight.to(delta.dtype) + delta.reshape(weight.shape).to(weight.device)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Frobenius norm of the change at multiplier 1, from rank-sized products: ‖BA‖² = tr(BᵀB AAᵀ). Shape []."""
        down, up = (factor.flatten(1).float() for factor in self.pair())
        return self.scale * ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0).sqrt()

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`, half of it in each factor."""
        for factor in (*self._weights(self.lora_down), *self._weights(self.lora_up)):
            factor.mul_(ratio.sqrt().to(factor.dtype))

    def _weights(self, factor: nn.Module) -> list[Tensor]:
        return [part.weight for part in factor.modules() if isinstance(part, Factor)]


def _factor_shapes(target: nn.Module, rank: int, num_parts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(target, nn.Conv2d):
        if num_parts > 1 or target.groups > 1:
            raise ValueError("an adapter for a convolution has one part, and the convolution one group")
        return (rank, target.in_channels, *target.kernel_size), (target.out_channels, rank, 1, 1)
    in_features, out_features = int(target.in_features), int(target.out_features)  # type: ignore[arg-type]
    if out_features % num_parts:
        raise ValueError(f"{out_features} outputs cannot be split into {num_parts} equal parts")
    return (rank, in_features), (out_features // num_parts, rank)


def _split(factors: Factors, num_parts: int, rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """Factors of a file as parts: blocks of the diagonal, or one `down` shared by all parts."""
    rows = list(factors.up.chunk(num_parts))
    if factors.rank == rank:
        return [factors.down] * num_parts, rows
    ups = [row[:, i * rank : (i + 1) * rank] for i, row in enumerate(rows)]
    return list(factors.down.split(rank)), ups


def is_block_diagonal(up: Tensor, num_parts: int) -> bool:
    """Whether the parts of `up` [out, num_parts * rank] use no rank of another part."""
    if up.shape[0] % num_parts or up.shape[1] % num_parts:
        return False
    blocks = up.reshape(num_parts, up.shape[0] // num_parts, num_parts, up.shape[1] // num_parts)
    return not any(blocks[i, :, j].any() for i in range(num_parts) for j in range(num_parts) if i != j)
