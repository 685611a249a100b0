"""What frozen layers in fewer bits have in common: bits and a scale in the place of a weight, and what makes numbers of
them (library/memory/quantize.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from library.memory.quantize import WIDENINGS, Widen, empty_state


class NarrowLayer(nn.Module):
    """A frozen layer that keeps its weight as a matrix in 8 or 4 bits, a row for each output.

    The bits of 8 are an int8 tensor in every form, those of 4 a uint8 tensor: `Module.to` leaves both alone. Bits and
    scale are buffers and are read when they are used, wherever they lie then. The bias is as wide as the arithmetic.

    Attributes:
        form: See `quantize`.
        dtype: Of the arithmetic and of the output.
    """

    form: str
    dtype: torch.dtype
    scale: Tensor

    def _hold(self, rows: int, length: int, form: str, dtype: torch.dtype, *, has_bias: bool) -> None:
        """Make place for a matrix [rows, length] and a bias; for the beginning, when there are no parameters yet."""
        self.form, self.dtype = form, dtype
        weight, scale = empty_state(rows, length, form)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        bias = nn.Parameter(torch.empty(rows, dtype=dtype), requires_grad=False) if has_bias else None
        self.register_parameter("bias", bias)

    def frozen_weight(self) -> tuple[Tensor, Tensor, Widen]:
        """Bits, scale, and what makes numbers of them; for whoever computes with this layer's weight."""
        return self.weight, self.scale, WIDENINGS[self.form]  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Scales stay float32, whatever the model is cast to."""
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form}"
