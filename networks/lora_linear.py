"""A frozen linear layer with a low-rank addition, as one autograd node.

y = x Wᵀ + b + s (x Aᵀ) Bᵀ. The strength s is applied to the rank-sized product and the addition is
accumulated into the base product, so that no full-sized elementwise pass is needed; the rank-sized
product, and x where A is trained, are all that is kept for the backward pass. A weight that is stored in fewer bits
is widened for each product, so the gradients are those of the widened weight.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1, with its gradients written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FrozenWeight(NamedTuple):
    """A weight [out, in] as a layer keeps it.

    Attributes:
        bits: The weight itself, or what it is stored as.
        scale: What belongs to the bits; None where the weight is stored as it is.
        widen: (bits, scale, dtype) -> the weight; None where it is stored as it is.
    """

    bits: Tensor
    scale: Tensor | None = None
    widen: Callable[[Tensor, Tensor, torch.dtype], Tensor] | None = None


def frozen_weight(layer: torch.nn.Module) -> FrozenWeight | None:
    """The weight of a layer that may be computed with here; None for a layer that has to do it itself.

    A layer with weights in fewer bits says by a method `frozen_weight` what it has of a `FrozenWeight`.
    """
    if is_plain_frozen(layer):
        return FrozenWeight(layer.weight)  # type: ignore[arg-type]
    ask = getattr(layer, "frozen_weight", None)
    return None if ask is None else FrozenWeight(*ask())


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear layer computes in for this input: autocast's where that is on, else the input's."""
    kind = x.device.type
    if kind != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def is_plain_frozen(layer: torch.nn.Module) -> bool:
    """Whether a layer is an ordinary linear layer with frozen, unquantised, unsharded weights."""
    if type(layer) is not torch.nn.Linear:
        return False
    tensors = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(not tensor.requires_grad and _is_plain(tensor) and tensor.dtype in WIDE_TYPES for tensor in tensors)


def _is_plain(tensor: Tensor) -> bool:
    """Not of a class of its own."""
    return type(tensor) in (torch.nn.Parameter, Tensor)


def lora_linear(
    x: Tensor,
    weight: Tensor | FrozenWeight,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """A frozen linear layer plus its low-rank addition.

    Gradients reach x (if it needs one) and the two factors, each in its own dtype; none is made for `weight`
    and `bias`. They cannot be differentiated a second time.

    Args:
        x: Input. Shape [..., in].
        weight: Frozen; what `frozen_weight` gives of a layer, or a tensor. Shape [out, in].
        bias: Frozen. Shape [out].
        down: Shape [rank, in].
        up: Shape [out, rank].
        scale: Strength of the addition.
        mask: Factors for the rank-sized product (dropout). Shape [..., rank].

    Returns:
        Shape [..., out], in the dtype of the computation (autocast's, else that of x).
    """
    x = x.to(compute_dtype(x))
    mask = mask if mask is None else mask.to(x.dtype).reshape(-1, mask.shape[-1])
    base = weight if isinstance(weight, FrozenWeight) else FrozenWeight(weight)
    out: Tensor = _LoraLinear.apply(x, *base, bias, down, up, scale, mask)
    return out


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        bits: Tensor,
        bits_scale: Tensor | None,
        widen: Callable[[Tensor, Tensor, torch.dtype], Tensor] | None,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        mask: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [n, in]
        low, high = down.to(x.dtype), up.to(x.dtype)
        inner = (rows @ low.t()).mul_(scale)  # [n, rank]
        if mask is not None:
            inner.mul_(mask)
        weight = bits if widen is None or bits_scale is None else widen(bits, bits_scale, rows.dtype)
        out = F.linear(rows, *_as_autocast_would(rows, weight, bias)).addmm_(inner, high.t())  # [n, out]
        # the weight is kept as it is stored: its cast or widened copies would be a second model in memory
        ctx.save_for_backward(rows if down.requires_grad else None, inner, bits, bits_scale, low, high, mask)
        ctx.widen, ctx.scale, ctx.shape, ctx.factor_dtypes = widen, scale, x.shape, (down.dtype, up.dtype)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, inner, bits, bits_scale, low, high, mask = ctx.saved_tensors
        needs_x, _, _, _, _, needs_down, needs_up, _, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])  # [n, out]
        grad_x = grad_down = grad_up = None
        if needs_up:
            grad_up = (grad.t() @ inner).to(ctx.factor_dtypes[1])
        if needs_x or needs_down:
            grad_inner = (grad @ high).mul_(ctx.scale)  # [n, rank]
            if mask is not None:
                grad_inner.mul_(mask)
            if needs_down:
                grad_down = (grad_inner.t() @ rows).to(ctx.factor_dtypes[0])
            if needs_x:
                weight = bits.to(grad.dtype) if ctx.widen is None else ctx.widen(bits, bits_scale, grad.dtype)
                grad_x = (grad @ weight).addmm_(grad_inner, low).view(ctx.shape)
        return grad_x, None, None, None, None, grad_down, grad_up, None, None


def _as_autocast_would(rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast the base weights where autocast is on; without it a wrong dtype stays torch's error."""
    if rows.device.type == "meta" or not torch.is_autocast_enabled(rows.device.type):
        return weight, bias
    return weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
