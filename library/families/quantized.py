"""A denoiser with the linear layers of its blocks in 8 or 4 bits, and their convolutions in 8.

All of them are rounded: projections, feed-forward layers, modulations and the convolutions of a U-Net. Their biases,
the norms and what lies around the blocks stay wide: that is small, and everything passes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.checkpoint.weights import StoredWeight
from library.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def check_form(form: str | None, device: torch.device) -> None:
    """See whether a device knows a format.

    Raises:
        EnvironmentFault: It does not.
    """
    if device.type == "mps" and form in ("fp8", "nf4"):
        raise EnvironmentFault(f"--base_weights_dtype {form}: this device does not know {form}. Use int8.")


@dataclass(frozen=True)
class FileWeight:
    """A tensor under the name that the model has for it, as the pieces of it that a file has.

    Attributes:
        name: In the model.
        pieces: In the order that `join` wants.
        join: Makes the tensor of its pieces, and of what is kept for each of their rows. It may leave one as it is.
    """

    name: str
    pieces: tuple[StoredWeight, ...]
    join: Callable[[Sequence[Tensor]], Tensor]

    def wide(self, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
        """The numbers. See `read_weights`, also for errors."""
        return self.join([piece.wide(dtype, device) for piece in self.pieces])


def fill_quantized(
    model: nn.Module,
    weights: Iterable[FileWeight],
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | None = None,
    as_stored: Collection[str] = (),
) -> None:
    """Read the weights of a denoiser, of which never more than one is wide beside those that stay so.

    Args:
        model: Without numbers, on the meta device.
        weights: All of its weights, not mapped: a view of one small tensor would keep all pages of the file that were
            read for others.
        form: "fp8", "int8" or "nf4". Weights that a file has in fp8 stay for "fp8" as they are, bits and scales.
        dtype: Of the arithmetic, and of all weights that stay wide but `as_stored`.
        device: Where the weights stay.
        rounds_on: Where they are rounded, one after the other; None is `device`.
        as_stored: Names of what stays in host memory as the file has it.

    Raises:
        CheckpointError: See `read_weights`.
    """
    from library.memory.narrow_layer import NarrowLayer

    layers = _replaced(model, form, dtype)
    tensors: dict[str, Tensor] = {}
    for weight in weights:
        if weight.name in layers:
            name = weight.name.removesuffix(".weight")
            layer = model.get_submodule(name)
            assert isinstance(layer, NarrowLayer)
            bits, scale, layer.form = _narrow(weight, layer.form, rounds_on or device)
            tensors |= {f"{name}.weight": bits.to(device), f"{name}.scale": scale.to(device)}
        else:
            is_kept = weight.name in as_stored
            tensors[weight.name] = weight.wide(None, "cpu") if is_kept else weight.wide(dtype, device)
    model.load_state_dict(tensors, assign=True)


def _replaced(model: nn.Module, form: str, dtype: torch.dtype) -> set[str]:
    """Put empty layers in the place of those that are rounded; the names of their weights in the model."""
    from library.memory.blocks import blocks
    from library.memory.quantized_layers import replace_layers

    names = {module: name for name, module in model.named_modules()}
    return {
        f"{names[block]}.{layer}" for block in blocks(model) for layer in replace_layers(block, form, lambda _: dtype)
    }


def quantize_denoiser(
    model: nn.Module,
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | None = None,
) -> None:
    """The same for a denoiser that has been read, and perhaps changed. It is changed in place.

    Args:
        model: With all weights wide.
        form: See `fill_quantized`, also for what follows.
        dtype: Of the arithmetic.
        device: Where the result is.
        rounds_on: None is `device`.
    """
    from library.memory.blocks import blocks
    from library.memory.quantized_layers import quantize_layers

    for block in blocks(model):
        quantize_layers(block, form, dtype, device, rounds_on=rounds_on)
    model.to(device, dtype)
    model.requires_grad_(False).eval()


def _narrow(weight: FileWeight, form: str, device: torch.device | str) -> tuple[Tensor, Tensor, str]:
    """Bits, scale and form of a weight, as a matrix with a row for each output."""
    from library.memory.quantize import FP8, keep_fp8, quantize

    types = {piece.dtype for piece in weight.pieces}
    wide = weight.wide(None, device)  # also where it is not needed: it refuses numbers that are not finite
    if form != FP8 or len(types) > 1 or not weight.pieces[0].is_fp8:
        return *quantize(wide.flatten(1), form), form
    del wide
    kept = [keep_fp8(piece.stored.to(device).flatten(1), piece.scale) for piece in weight.pieces]
    bits, scales, forms = zip(*kept, strict=True)
    return weight.join(bits), weight.join(scales), forms[0]
