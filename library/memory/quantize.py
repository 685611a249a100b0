"""Linear layers that keep their weights in 8 bits and widen them for each use: half the memory of fp16, in plain torch.

Two formats, each with one scale per output row: "int8", whole numbers from -127 to 127, and "fp8" (float8_e4m3fn),
whose scale is a power of two times the unit that the weights are given in, so that weights which are stored in fp8
already stay as they are. Of weights that are spread like a bell int8 keeps the most.

Source of the rows' scales: Dettmers et al. 2022, arXiv:2208.07339, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INT8, FP8 = "int8", "fp8"
_LARGEST = {INT8: 127.0, FP8: 448.0}


def quantize(weight: Tensor, bits: str, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits.

    Args:
        weight: Finite. Shape [out, in].
        bits: "int8" or "fp8".
        unit: What the weights are multiples of, where they come from a file in fp8: one number, or shape [out].

    Returns:
        The bits, as int8 in both formats, shape [out, in], and float32 scales, shape [out, 1], see `widen`.
    """
    rows = weight.float()
    largest = rows.abs().amax(dim=1, keepdim=True)  # [out, 1]
    if bits == INT8:
        scale = (largest / _LARGEST[INT8]).bfloat16().float()  # so that no precision rounds it when it is used
    else:
        units = torch.ones_like(largest) if unit is None else unit.to(rows).reshape(-1, 1).expand_as(largest)
        scale = units * (largest / (_LARGEST[FP8] * units)).log2().ceil().exp2()
    scale = torch.where(scale > 0, scale, 1.0)  # rows of zeros
    scaled = (rows / scale).clamp(-_LARGEST[bits], _LARGEST[bits])
    if bits == INT8:
        return scaled.round().to(torch.int8), scale
    return scaled.to(torch.float8_e4m3fn).view(torch.int8), scale


def widen(weight: Tensor, scale: Tensor, bits: str, dtype: torch.dtype) -> Tensor:
    """The numbers that `quantize` kept, in `dtype`. Shape [out, in]."""
    if bits == INT8:
        return weight * scale.to(dtype)  # one pass: torch widens as it multiplies
    return weight.view(torch.float8_e4m3fn).to(dtype).mul_(scale.to(dtype))


class QuantizedLinear(nn.Module):
    """A frozen linear layer without bias.

    The bits are an int8 tensor in both formats: `Module.to` leaves it alone, and transformers casts what goes into a
    layer of T5 to the dtype of its weight unless that is int8.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bits: "int8" or "fp8".
        dtype: Of the arithmetic and of the output.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bits: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits, self.dtype = bits, dtype
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), widen(self.weight, self.scale, self.bits, self.dtype))


def replace_linears(model: nn.Module, bits: str, dtype_of: Callable[[str], torch.dtype]) -> frozenset[str]:
    """Put empty quantised layers in the place of all linear layers, none of which has a bias.

    Args:
        model: On the meta device.
        bits: "int8" or "fp8".
        dtype_of: Dtype of the arithmetic by the name of a weight.

    Returns:
        Names of their weights; `<layer>.scale` belongs to `<layer>.weight`.
    """
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in linears.items():
        assert "bias" not in dict(layer.named_parameters()), f"{name} has a bias"
        parent, _, own = name.rpartition(".")
        with torch.device("meta"):
            empty = QuantizedLinear(layer.in_features, layer.out_features, bits, dtype_of(f"{name}.weight"))
        setattr(model.get_submodule(parent), own, empty)
    return frozenset(f"{name}.weight" for name in linears)
