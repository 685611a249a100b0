"""Frozen linear layers that keep their weights in 8 or 4 bits (library/memory/quantize.py) and widen them for each use.

Nothing wide outlives a pass: what is kept for the backward pass are the bits and their scale themselves, which are
widened once more there. Both are buffers of the layer and read when they are used, wherever they lie then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from library.memory.quantize import WIDENINGS, Widen, empty_state, quantize


class QuantizedLinear(nn.Linear):
    """A frozen linear layer. Its bias is as wide as its arithmetic.

    The bits of 8 are an int8 tensor in every form, those of 4 a uint8 tensor: `Module.to` leaves both alone, and
    transformers casts what goes into some layers to the dtype of its weight unless that is int8.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        form: See `quantize`.
        dtype: Of the arithmetic and of the output.
        has_bias: Whether there is one.
    """

    scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, form: str, dtype: torch.dtype, *, has_bias: bool = False
    ) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make its weight
        self.in_features, self.out_features = in_features, out_features
        self.form, self.dtype = form, dtype
        weight, scale = empty_state(out_features, in_features, form)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if has_bias else None
        self.register_parameter("bias", bias)

    def frozen_weight(self) -> tuple[Tensor, Tensor, Widen]:
        """Bits, scale, and what makes numbers of them; for whoever computes with this layer's weight."""
        return self.weight, self.scale, WIDENINGS[self.form]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FrozenLinear.apply(x.to(self.dtype), self.bias, *self.frozen_weight())
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Scales stay float32, whatever the model is cast to."""
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form}"


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


def replace_linears(model: nn.Module, form: str, dtype_of: Callable[[str], torch.dtype]) -> frozenset[str]:
    """Put empty quantised layers in the place of all linear layers.

    Args:
        model: On the meta device.
        form: See `quantize`.
        dtype_of: Dtype of the arithmetic by the name of a weight.

    Returns:
        Names of their weights; `<layer>.scale` belongs to `<layer>.weight`.
    """
    linears = _linears(model)
    for name, layer in linears.items():
        with torch.device("meta"):
            empty = _empty_like(layer, form, dtype_of(f"{name}.weight"))
        _put(model, name, empty)
    return frozenset(f"{name}.weight" for name in linears)


def quantize_linears(
    model: nn.Module,
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | str | None = None,
) -> None:
    """Put quantised layers in the place of all linear layers, one after the other; each wide one is then forgotten.

    Args:
        model: With its weights, which may be on another device.
        form: "int8", "fp8" or "nf4".
        dtype: Of the arithmetic.
        device: Where they stay.
        rounds_on: Where they are rounded; None is `device`.
    """
    for name in list(_linears(model)):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        with torch.device("meta"):
            narrow = _empty_like(layer, form, dtype)
        bits, scale = quantize(layer.weight.detach().to(rounds_on or device), form)
        narrow.weight, narrow.scale = bits.to(device), scale.to(device)  # type: ignore[assignment]
        if layer.bias is not None:
            narrow.bias = nn.Parameter(layer.bias.detach().to(device, dtype), requires_grad=False)
        _put(model, name, narrow)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def _empty_like(layer: nn.Linear, form: str, dtype: torch.dtype) -> QuantizedLinear:
    return QuantizedLinear(layer.in_features, layer.out_features, form, dtype, has_bias=layer.bias is not None)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
