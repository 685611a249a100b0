"""Sums of LoRAs: exact, by putting their ranks side by side, or as near as fewer ranks allow.

What a module adds to its weight is scale * up @ down. The sum of several, each times its strength, has the ranks of all
of them: down is stacked, up is joined, and each factor takes the root of the strength, so that both stay of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import refuse_overflow
from library.errors import CheckpointError, OutputError
from library.families.lora_layout import LoraPair

if TYPE_CHECKING:
    import torch

Parts = Sequence[tuple[LoraPair, float]]
"""(module, strength) of everything that goes into one place."""

_NOTHING = 1e-10  # of a squared norm: what rounding leaves
UNROUNDED = "Use --precision float, or lower --ratios."
"""What to do where the type of the computation is too narrow."""


@dataclass(frozen=True)
class Reduced:
    """A module that stands for a sum.

    Attributes:
        pair: Its factors.
        lost: Squared norm of the sum without it.
        whole: Squared norm of the sum.
    """

    pair: LoraPair
    lost: float
    whole: float


def size_of(pair: LoraPair) -> tuple[int, ...]:
    """(outputs, inputs, and height and width of a convolution larger than 1x1)."""
    kernel = tuple(pair.down.shape[2:])
    return (pair.up.shape[0], pair.down.shape[1], *(kernel if any(side > 1 for side in kernel) else ()))


def at_strength(pair: LoraPair, strength: float) -> LoraPair:
    """A module at another strength; its factors keep their numbers, but for the sign."""
    return LoraPair(pair.down, -pair.up if strength < 0 else pair.up, pair.scale * abs(strength))


def joined(parts: Parts, dtype: torch.dtype) -> LoraPair:
    """The exact sum of modules of one size, as one module; of one module, that module at its strength.

    Args:
        parts: (module, strength), one or more.
        dtype: Of the computation and of the result where there are several.
    """
    import torch

    if len(parts) == 1:
        return at_strength(*parts[0])
    first = parts[0][0]
    downs, ups = [], []
    for pair, strength in parts:
        total = pair.scale * strength
        root = abs(total) ** 0.5
        down = pair.down.reshape(pair.down.shape[0], *first.down.shape[1:])
        up = pair.up.reshape(pair.up.shape[0], pair.up.shape[1], *first.up.shape[2:])
        downs.append(down.to(dtype) * root)
        ups.append(up.to(dtype) * (root if total >= 0 else -root))
    return LoraPair(torch.cat(downs), torch.cat(ups, 1), 1.0)


def exact(pair: LoraPair) -> Reduced:
    """A module that is the whole sum."""
    return Reduced(pair, 0.0, squared_norm(pair))


def squared_norm(pair: LoraPair) -> float:
    """Of what a module adds, which is not multiplied out for it."""
    up, down = pair.up.flatten(1).double(), pair.down.flatten(1).double()
    return float(((up.T @ up) * (down @ down.T)).sum()) * pair.scale * pair.scale


def share_lost(modules: Iterable[Reduced]) -> float:
    """The norm of all sums without the modules that stand for them, as a share of that of the sums."""
    found = list(modules)
    lost, whole = sum(each.lost for each in found), sum(each.whole for each in found)
    return float((lost / whole) ** 0.5) if whole else 0.0


def share_kept(modules: Iterable[Reduced]) -> float:
    """The norm of all modules as a share of that of the sums, 0 to 1, where each is the nearest one of its rank."""
    return float(max(0.0, 1 - share_lost(modules) ** 2) ** 0.5)


def reduced(pair: LoraPair, rank: int, *, device: torch.device | str = "cpu", clamp: float | None = None) -> Reduced:
    """The best approximation of a module by one of at most `rank` ranks.

    Args:
        pair: The module.
        rank: The most to keep.
        device: Where it is computed.
        clamp: Quantile at which numbers of the singular vectors are cut; None cuts none.

    Returns:
        On the CPU, in float32.
    """
    import torch

    from library.loras.low_rank import factors_of, svd_of_product

    up = pair.up.to(device)
    u, s, vh = svd_of_product(pair.down.to(device), (up if up.device.type == "mps" else up.double()) * pair.scale)
    rank = min(rank, len(s))
    if clamp is None:
        down, up = factors_of(u, s, vh, rank)
        lost = float(s[rank:].square().sum())
    else:
        left, right = u[:, :rank] * s[:rank], vh[:rank]
        limit = torch.quantile(torch.cat([left.flatten(), right.flatten()]).abs().float(), clamp).to(left.dtype)
        up, down = left.clamp(-limit, limit), right.clamp(-limit, limit)
        missing = svd_of_product(torch.cat([(s[:, None] * vh), down]), torch.cat([u, -up], 1)).s
        lost = float(missing.square().sum())
    down = down.reshape(rank, *pair.down.shape[1:]).float().cpu().contiguous()
    up = up.reshape(len(up), rank, *pair.up.shape[2:]).float().cpu().contiguous()
    return Reduced(LoraPair(down, up, 1.0), lost, float(s.square().sum()))


def check_sums(modules: Iterable[Parts]) -> None:
    """Refuse a merge of which nothing would be left.

    Args:
        modules: All of them, none at strength 0.

    Raises:
        CheckpointError: There are none, they add nothing, or they take each other away.
        OutputError: Their numbers are too large to compute with.
    """
    import torch

    left, apart = 0.0, 0.0
    for parts in modules:
        left += squared_norm(joined(parts, torch.float64))
        apart += sum(squared_norm(at_strength(*part)) for part in parts)
        if not math.isfinite(apart):
            raise OutputError("the sums have numbers that no format can hold. Lower --ratios.")
    if not apart:
        raise CheckpointError(
            "nothing would be merged: what --models have at a strength other than 0 is all zeros. Check --models, "
            "--ratios and --lbws."
        )
    if left < _NOTHING * apart:
        raise CheckpointError("the files take each other away, so nothing would be left. Check --models and --ratios.")


def check_holds(name: str, pair: LoraPair) -> None:
    """Refuse a sum that was too large for the type that it was computed in.

    Args:
        name: Of the module.
        pair: From `joined`.

    Raises:
        OutputError: It has infinite numbers.
    """
    for tensor in (pair.down, pair.up):
        refuse_overflow(name, tensor, UNROUNDED)


def check_sizes(name: str, sizes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Modules can only be added that are of one size.

    Args:
        name: Of the module.
        sizes: (file, size), from `size_of`.

    Raises:
        CheckpointError: They are not.
    """
    first_file, first = sizes[0]
    for file, size in sizes[1:]:
        if size != first:
            told = " and ".join(f"{_words(each)} in {path}" for path, each in ((first_file, first), (file, size)))
            raise CheckpointError(
                f"--models: {name} is {told}, so these LoRAs are for models of different sizes. Merge LoRAs of one "
                "model."
            )


def _words(size: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in size)
