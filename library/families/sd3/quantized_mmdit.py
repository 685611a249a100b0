"""The MMDiT with the linear layers of its blocks in 8 or 4 bits, see `library/families/quantized.py`.

Beside the embedders and the final layer, the table of positions stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, StoredWeight, stored_weights
from library.families import quantized
from library.families.quantized import FileWeight, quantize_denoiser
from library.families.sd3.checkpoint import POSITION_TABLES
from library.families.sd3.key_map import ModulePair, mmdit_tensors, published_tensor

if TYPE_CHECKING:
    import torch

    from library.models.mmdit import MMDiT


def fill_quantized(
    model: MMDiT,
    part: Part,
    form: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    rounds_on: torch.device | None = None,
) -> None:
    """Read the weights of an MMDiT.

    Args:
        model: Without numbers, on the meta device.
        part: Its weights.
        form: "fp8", "int8" or "nf4".
        dtype: Of the arithmetic, and of all weights that stay wide but the table of positions.
        device: Where the weights stay.
        rounds_on: Where they are rounded, one after the other; None is `device`.

    Raises:
        CheckpointError: See `read_weights`.
    """
    weights = _published_weights(part, list(model.state_dict()))
    quantized.fill_quantized(model, weights, form, dtype, device, rounds_on=rounds_on, as_stored=POSITION_TABLES)


def quantize_mmdit(
    model: MMDiT, form: str, dtype: torch.dtype, device: torch.device | str, *, rounds_on: torch.device | None = None
) -> MMDiT:
    """The same for an MMDiT that has been read, and perhaps changed. It is changed in place."""
    quantize_denoiser(model, form, dtype, device, rounds_on=rounds_on)
    return model


def _published_weights(part: Part, names: Iterable[str]) -> Iterator[FileWeight]:
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
            yield FileWeight(
                pair.published, tuple(found[piece] for piece in pair.diffusers), partial(published_tensor, pair)
            )
