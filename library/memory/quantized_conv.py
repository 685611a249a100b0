"""Frozen convolutions that keep their weights in fewer bits (library/memory/quantize.py) and widen them for each use.

As with linear layers nothing wide outlives a pass: the backward pass widens the same bits once more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from library.memory.narrow_layer import NarrowLayer
from library.memory.quantize import Widen

_Settings = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


class QuantizedConv2d(NarrowLayer, nn.Conv2d):
    """A frozen convolution, see `NarrowLayer`. Its matrix has a row for each output channel.

    Args:
        layer: Of which sizes and whether there is a bias are taken; see `is_possible`.
        form: See `quantize`.
        dtype: Of the arithmetic and of the output.
    """

    def __init__(self, layer: nn.Conv2d, form: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # that of nn.Conv2d would make its weight
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode, self.output_padding = layer.padding, layer.padding_mode, layer.output_padding
        self.groups, self.transposed = layer.groups, layer.transposed
        length = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        self._hold(layer.out_channels, length, form, dtype, has_bias=layer.bias is not None)

    @staticmethod
    def is_possible(layer: nn.Module) -> bool:
        """Whether a layer is a convolution that is known here: padded by zeros whose number is given."""
        return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        out: Tensor = _FrozenConv.apply(x.to(self.dtype), self.bias, *self.frozen_weight(), shape, settings)
        return out


class _FrozenConv(torch.autograd.Function):
    """A convolution of x with a kernel widened from bits, which are all that is kept of it. Shapes [B, C, h, w]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        scale: Tensor,
        widen: Widen,
        shape: tuple[int, ...],
        settings: _Settings,
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.widen, ctx.shape, ctx.settings, ctx.input_shape = widen, shape, settings, x.shape
        return F.conv2d(x, widen(weight, scale, x.dtype).view(shape), bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        kernel = ctx.widen(weight, scale, grad.dtype).view(ctx.shape)
        return conv2d_input(ctx.input_shape, kernel, grad, *ctx.settings), *[None] * 6
