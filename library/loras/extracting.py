"""A LoRA from the difference between two weights: its best approximation of a rank.

Source: Eckart and Young 1936; that largest numbers are cut down to a quantile is the custom of such tools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.families.lora_layout import LoraPair
from library.loras.extracting_places import DENOISER, SD3, ModelPlaces, layers_of
from library.loras.low_rank import chosen_rank, factors_of, svd_of_matrix
from library.loras.retained import Retained, retained_of
from networks.sd3_args import Sd3NetworkArgs
from networks.sd3_targets import denoiser_rules, encoder_rules
from networks.targets import ModelOutline, PlannedModule, TargetRule, plan_modules
from networks.unet_args import UnetNetworkArgs
from networks.unet_layers import UnetNames
from networks.unet_targets import plan_denoiser

if TYPE_CHECKING:
    from library.loras.extracting_places import Place

_T5 = "lora_te3"


@dataclass(frozen=True)
class Extracted:
    """The LoRA of one layer.

    Attributes:
        pair: Its factors, float32.
        retained: What they keep of the difference, before numbers are cut down.
        clamped: Frobenius norm of what that has changed.
    """

    pair: LoraPair
    retained: Retained
    clamped: float


def plan_of(model: ModelPlaces, dim: int, conv_dim: int | None) -> dict[str, tuple[PlannedModule, ...]]:
    """{prefix: layers that get a LoRA, and their ranks}, as trained networks have them.

    Args:
        model: The original.
        dim: Rank of linear layers and 1x1 convolutions.
        conv_dim: Of other convolutions; None leaves out what lies outside of attention.
    """
    plans = {DENOISER: _plan_of_denoiser(model, dim, conv_dim)}
    for prefix, places in model.parts.items():
        if prefix != DENOISER:
            plans[prefix] = plan_modules(layers_of(places), _encoder_rules(prefix, dim))
    return plans


def ends_of_sd3(dim: int, conv_dim: int) -> tuple[int, int, int, int, int, int]:
    """Ranks of the embedders and the final layer, in the order of emb_dims (networks/sd3_targets.py)."""
    return dim, dim, conv_dim, dim, dim, dim


def _plan_of_denoiser(model: ModelPlaces, dim: int, conv_dim: int | None) -> tuple[PlannedModule, ...]:
    places = model.parts[DENOISER]
    if model.kind == SD3:
        ends = None if conv_dim is None else ends_of_sd3(dim, conv_dim)
        return plan_modules(layers_of(places), denoiser_rules(Sd3NetworkArgs(emb_dims=ends), dim, None))
    shapes = {name: places[f"{name}.weight"].shape for name in layers_of(places)}
    layers = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    names = UnetNames.of_outline(ModelOutline(model.kind, layers, 0))
    return plan_denoiser(names, UnetNetworkArgs(conv_dim=conv_dim), dim, None)


def _encoder_rules(prefix: str, dim: int) -> tuple[TargetRule, ...]:
    return encoder_rules("T5" if prefix == _T5 else "CLIP", dim, None)


def is_same(original: Tensor, tuned: Tensor) -> bool:
    """Whether two tensors hold the same numbers, or one number can have been rounded to both, each in its format."""
    if original.shape.numel() != tuned.shape.numel():
        return False
    one, other = original.flatten(), tuned.flatten()
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    return bool(((one.float() - other.float()).abs() <= _rounding(one) + _rounding(other)).all())


def _rounding(numbers: Tensor) -> Tensor:
    """How far rounding to their format can have moved numbers: half of the step at each. Shape as theirs."""
    limits = torch.finfo(numbers.dtype if numbers.itemsize < 4 else torch.float32)
    exponents = torch.frexp(numbers.float()).exponent - 1
    steps = torch.ldexp(torch.full_like(exponents, limits.eps, dtype=torch.float32), exponents)
    return steps.clamp(min=limits.smallest_normal * limits.eps) / 2


def difference(
    places: tuple[Place, Place],
    dtype: torch.dtype | None,
    *,
    homes: tuple[str, str] = ("cpu", "cpu"),
    device: str = "cpu",
) -> Tensor | None:
    """What tuning has added to a weight, float32, in the shape of the original; None where that is nothing.

    Args:
        places: Of the original and of the tuned weight.
        dtype: Both are rounded to it first; None leaves them as they are stored.
        homes: Devices to which the two are read.
        device: Where they are compared.

    Raises:
        CheckpointError: NaN or infinite values.
    """
    original, tuned = (place.read(dtype, home).to(device) for place, home in zip(places, homes, strict=True))
    if is_same(original, tuned):
        return None
    return tuned.float().reshape(original.shape) - original.float()


def extract(name: str, delta: Tensor, rank: int, *, quantile: float = 1.0) -> Extracted:
    """The LoRA of a layer, on the CPU.

    Args:
        name: Of the module.
        delta: What tuning has added. Shape [out, in, ...].
        rank: Of the LoRA; less where the matrix has less.
        quantile: See `clamp`.
    """
    singular = svd_of_matrix(delta)
    rank = chosen_rank(singular.s, rank=rank)
    left = retained_of(name, singular.s, rank=rank, own_rank=len(singular.s))
    whole = factors_of(*singular, rank)
    down, up = clamp(*whole, quantile)
    changed = _distance(whole, (down, up)) if quantile < 1 else 0.0
    ones = [1] * (delta.dim() - 2)
    pair = LoraPair(down.reshape(rank, *delta.shape[1:]).cpu(), up.reshape(len(up), rank, *ones).cpu(), 1.0)
    return Extracted(pair, left, changed)


def clamp(down: Tensor, up: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Both factors with their largest numbers cut down to a quantile of all sizes.

    The sizes count, not the signs: a decomposition may turn the sign of a row and its column.

    Args:
        down: Shape [rank, in].
        up: Shape [out, rank].
        quantile: Above 0; 1 changes nothing.
    """
    if quantile >= 1:
        return down, up
    sizes = torch.cat([down.flatten(), up.flatten()]).abs()
    limit = sizes.kthvalue(max(1, math.ceil(quantile * len(sizes)))).values
    return down.clamp(-limit, limit), up.clamp(-limit, limit)


def _distance(whole: tuple[Tensor, Tensor], changed: tuple[Tensor, Tensor]) -> float:
    """Frobenius norm of the difference of two products up @ down, from their inner products alone."""
    wide = torch.float32 if whole[0].device.type == "mps" else torch.float64
    down = torch.cat([whole[0], changed[0]]).to(wide)
    up = torch.cat([whole[1], -changed[1]], dim=1).to(wide)
    return max(0.0, float(((up.mT @ up) * (down @ down.mT)).sum())) ** 0.5


def clamped_share(modules: Mapping[str, Extracted]) -> float:
    """How much cutting numbers down has changed all modules together, as a share of their norm."""
    kept = math.hypot(*(module.retained.norm for module in modules.values()))
    changed = math.hypot(*(module.clamped for module in modules.values()))
    return changed / kept if kept else 0.0
