"""A frozen linear layer with a low-rank addition, as one autograd node.

y = x Wᵀ + b + s (x Aᵀ) Bᵀ. The strength s is applied to the rank-sized product and the addition is
accumulated into the base product, so that no full-sized elementwise pass is needed; x and the
rank-sized product are all that is kept for the backward pass.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1, with its gradients written out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_PLAIN_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    return all(
        not tensor.requires_grad and type(tensor) in (torch.nn.Parameter, Tensor) and tensor.dtype in _PLAIN_TYPES
        for tensor in tensors
    )


def lora_linear(
    x: Tensor,
    weight: Tensor,
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
        weight: Frozen. Shape [out, in].
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
    out: Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale, mask)
    return out


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
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
        out = F.linear(rows, *_as_autocast_would(rows, weight, bias)).addmm_(inner, high.t())  # [n, out]
        # the weight is kept as it is stored: its cast copies would be a second model in memory
        ctx.save_for_backward(rows, inner, weight, low, high, mask)
        ctx.scale, ctx.shape, ctx.factor_dtypes = scale, x.shape, (down.dtype, up.dtype)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, inner, weight, low, high, mask = ctx.saved_tensors
        needs_x, _, _, needs_down, needs_up, _, _ = ctx.needs_input_grad
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
                grad_x = (grad @ weight.to(grad.dtype)).addmm_(grad_inner, low).view(ctx.shape)
        return grad_x, None, None, grad_down, grad_up, None, None


def _as_autocast_would(rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast the base weights where autocast is on; without it a wrong dtype stays torch's error."""
    if rows.device.type == "meta" or not torch.is_autocast_enabled(rows.device.type):
        return weight, bias
    return weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
