"""Frozen linear layers that keep their weights in 8 or 4 bits (library/memory/quantize.py) and widen them for each use.

Nothing wide outlives a pass: what is kept for the backward pass are the bits and their scale themselves, which are
widened once more there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from library.memory.narrow_layer import NarrowLayer
from library.memory.quantize import Widen


class QuantizedLinear(NarrowLayer, nn.Linear):
    """A frozen linear layer, see `NarrowLayer`.

    Its bits are never a floating type: transformers casts what goes into some layers to the dtype of its weight unless
    that is int8.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        form: See `quantize`.
        dtype: Of the arithmetic and of the output.
        has_bias: Whether there is one.
    """

    def __init__(
        self, in_features: int, out_features: int, form: str, dtype: torch.dtype, *, has_bias: bool = False
    ) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make its weight
        self.in_features, self.out_features = in_features, out_features
        self._hold(out_features, in_features, form, dtype, has_bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FrozenLinear.apply(x.to(self.dtype), self.bias, *self.frozen_weight())
        return out


class _FrozenLinear(torch.autograd.Function):
    """x Wᵀ + b with W widened from bits, which are all that is kept of it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, scale: Tensor, widen: Widen
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.widen = widen
        return F.linear(x, widen(weight, scale, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        return grad @ ctx.widen(weight, scale, grad.dtype), None, None, None, None
