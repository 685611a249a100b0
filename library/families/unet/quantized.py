"""The U-Net with the linear layers and convolutions of its blocks in fewer bits, see `library/families/quantized.py`.

First and last convolution, embedders and the projections around the transformer blocks stay wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, stored_weights
from library.families import quantized
from library.families.quantized import FileWeight, quantize_denoiser
from library.unet_names import to_diffusers

if TYPE_CHECKING:
    import torch

    from library.models.unet import UNet


def fill_quantized(
    model: UNet,
    part: Part,
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | None = None,
) -> None:
    """Read the weights of a U-Net.

    Args:
        model: Without numbers, on the meta device.
        part: Its weights.
        form: "fp8", "int8" or "nf4".
        dtype: Of the arithmetic, and of all weights that stay wide.
        device: Where the weights stay.
        rounds_on: Where they are rounded, one after the other; None is `device`.

    Raises:
        CheckpointError: See `read_weights`.
    """
    quantized.fill_quantized(model, _weights(part), form, dtype, device, rounds_on=rounds_on)


def quantize_unet(
    model: UNet, form: str, dtype: torch.dtype, device: torch.device | str, *, rounds_on: torch.device | None = None
) -> UNet:
    """The same for a U-Net that has been read, and perhaps changed. It is changed in place."""
    quantize_denoiser(model, form, dtype, device, rounds_on=rounds_on)
    return model


def _weights(part: Part) -> Iterator[FileWeight]:
    """Each tensor under its name in the model, as the file comes to it."""
    published = part.names.values()
    names = {name: name for name in published} if part.is_diffusers else to_diffusers(published)
    for weight in stored_weights(part, mmap=False):
        yield FileWeight(names[weight.name], (weight,), itemgetter(0))
