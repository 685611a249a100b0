"""Layers of a model in fewer bits: linear layers and convolutions are replaced by such that keep 8 or 4 bits.

Convolutions keep 8 in any case, int8 where nf4 is asked for. In 4 bits those of a random model change what it predicts
by half, where its linear layers change it by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from library.memory.narrow_layer import NarrowLayer
from library.memory.quantize import INT8, NF4, quantize
from library.memory.quantized_conv import QuantizedConv2d
from library.memory.quantized_linear import QuantizedLinear


def replace_layers(model: nn.Module, form: str, dtype_of: Callable[[str], torch.dtype]) -> frozenset[str]:
    """Put empty quantised layers in the place of all linear layers and convolutions.

    Args:
        model: On the meta device.
        form: See `quantize`.
        dtype_of: Dtype of the arithmetic by the name of a weight.

    Returns:
        Names of their weights; `<layer>.scale` belongs to `<layer>.weight`.
    """
    layers = _layers(model)
    for name, layer in layers.items():
        with torch.device("meta"):
            empty = _empty_like(layer, form, dtype_of(f"{name}.weight"))
        _put(model, name, empty)
    return frozenset(f"{name}.weight" for name in layers)


def quantize_layers(
    model: nn.Module,
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | str | None = None,
) -> None:
    """Put quantised layers in the place of all these, one after the other; each wide one is then forgotten.

    Args:
        model: With its weights, which may be on another device.
        form: "int8", "fp8" or "nf4".
        dtype: Of the arithmetic.
        device: Where they stay.
        rounds_on: Where they are rounded; None is `device`.
    """
    for name in list(_layers(model)):
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        with torch.device("meta"):
            narrow = _empty_like(layer, form, dtype)
        bits, scale = quantize(layer.weight.detach().to(rounds_on or device).flatten(1), narrow.form)
        narrow.weight, narrow.scale = bits.to(device), scale.to(device)  # type: ignore[assignment]
        if layer.bias is not None:
            narrow.bias = nn.Parameter(layer.bias.detach().to(device, dtype), requires_grad=False)
        _put(model, name, narrow)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or QuantizedConv2d.is_possible(layer)
    }


def _empty_like(layer: nn.Module, form: str, dtype: torch.dtype) -> NarrowLayer:
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, INT8 if form == NF4 else form, dtype)
    assert isinstance(layer, nn.Linear)
    return QuantizedLinear(layer.in_features, layer.out_features, form, dtype, has_bias=layer.bias is not None)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
