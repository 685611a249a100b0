"""The denoiser with the linear layers of its blocks in 8 or 4 bits.

All linear layers of the joint blocks are rounded: projections, feed-forward layers and modulations. Their biases, the
norms, the embedders, the final layer and the table of positions stay wide: they are small, and everything passes
through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, StoredWeight, stored_weights
from library.errors import EnvironmentFault
from library.families.sd3.checkpoint import POSITION_TABLES
from library.families.sd3.key_map import ModulePair, mmdit_tensors, published_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.models.mmdit import MMDiT

_BLOCKS = "joint_blocks"


def check_form(form: str | None, device: torch.device) -> None:
    """See whether a device knows a format.

    Raises:
        EnvironmentFault: It does not.
    """
    if device.type == "mps" and form in ("fp8", "nf4"):
        raise EnvironmentFault(f"--base_weights_dtype {form}: this device does not know {form}. Use int8.")


def fill_quantized(
    model: MMDiT,
    part: Part,
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | None = None,
) -> None:
    """Read the weights of a denoiser, of which never more than one is wide beside those that stay so.

    Args:
        model: Without numbers, on the meta device.
        part: Its weights.
        form: "fp8", "int8" or "nf4". Weights that a file has in fp8 stay for "fp8" as they are, bits and scales.
        dtype: Of the arithmetic, and of all weights that stay wide but the table of positions.
        device: Where the weights stay.
        rounds_on: Where they are rounded, one after the other; None is `device`.

    Nothing is mapped: a view of one small tensor would keep all pages of the file that were read for others.

    Raises:
        CheckpointError: See `read_weights`.
    """
    from library.memory.quantized_linear import QuantizedLinear, replace_linears

    names = list(model.state_dict())
    layers = {f"{_BLOCKS}.{name}" for name in replace_linears(model.joint_blocks, form, lambda _: dtype)}
    tensors: dict[str, Tensor] = {}
    for weight in _published_weights(part, names):
        if weight.name in layers:
            name = weight.name.removesuffix(".weight")
            bits, scale, own_form = _narrow(weight, form, rounds_on or device)
            tensors |= {f"{name}.weight": bits.to(device), f"{name}.scale": scale.to(device)}
            layer = model.get_submodule(name)
            assert isinstance(layer, QuantizedLinear)
            layer.form = own_form
        else:
            is_table = weight.name in POSITION_TABLES
            tensors[weight.name] = weight.wide(None, "cpu") if is_table else weight.wide(dtype, device)
    model.load_state_dict(tensors, assign=True)


def quantize_mmdit(
    model: MMDiT, form: str, dtype: torch.dtype, device: torch.device | str, *, rounds_on: torch.device | None = None
) -> MMDiT:
    """The same for a denoiser that has been read, and perhaps changed.

    Args:
        model: With all weights wide. It is used up.
        form: See `fill_quantized`, also for what follows.
        dtype: Of the arithmetic.
        device: Where the result is.
        rounds_on: None is `device`.
    """
    from library.memory.quantized_linear import quantize_linears

    quantize_linears(model.joint_blocks, form, dtype, device, rounds_on=rounds_on)
    model.to(device, dtype)  # but for the table of positions, which stays as it is
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class _PublishedWeight:
    """A tensor under its published name, as the pieces of it that a file has."""

    pair: ModulePair
    pieces: tuple[StoredWeight, ...]

    @property
    def name(self) -> str:
        return self.pair.published

    def wide(self, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
        """The numbers. See `read_weights`, also for errors."""
        return published_tensor(self.pair, [piece.wide(dtype, device) for piece in self.pieces])


def _published_weights(part: Part, names: Iterable[str]) -> Iterator[_PublishedWeight]:
    """Each tensor as soon as the file has given all of it."""
    pairs = mmdit_tensors(names) if part.is_diffusers else {name: ModulePair(name, (name,)) for name in names}
    homes = {piece: pair for pair in pairs.values() for piece in pair.diffusers}
    waiting: dict[str, dict[str, StoredWeight]] = {}
    for weight in stored_weights(part, mmap=False):
        pair = homes[weight.name]
        found = waiting.setdefault(pair.published, {})
        found[weight.name] = weight
        if len(found) == len(pair.diffusers):
            del waiting[pair.published]
            yield _PublishedWeight(pair, tuple(found[piece] for piece in pair.diffusers))


def _narrow(weight: _PublishedWeight, form: str, device: torch.device | str) -> tuple[Tensor, Tensor, str]:
    """Bits, scale and form of a linear layer's weight."""
    from library.memory.quantize import FP8, keep_fp8, quantize

    types = {piece.dtype for piece in weight.pieces}
    wide = weight.wide(None, device)  # also where it is not needed: it refuses numbers that are not finite
    if form != FP8 or len(types) > 1 or not weight.pieces[0].is_fp8:
        return *quantize(wide, form), form
    del wide
    kept = [keep_fp8(piece.stored.to(device), piece.scale) for piece in weight.pieces]
    bits, scales, forms = zip(*kept, strict=True)
    return published_tensor(weight.pair, bits), published_tensor(weight.pair, scales), forms[0]
