"""How much of a LoRA or of a difference is left at a rank, and the lines of the log about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Retained:
    """What became of a module.

    Attributes:
        name: In a kohya file.
        rank: That it has now.
        own_rank: That it had; of a difference the smaller side of its matrix.
        norm: Frobenius norm of what it adds now, and `whole_norm` of all that it added.
        total: Sum of singular values now, and `whole_total` of all.
        ratio: The greatest singular value by the least that is kept; infinite where that is 0.
    """

    name: str
    rank: int
    own_rank: int
    norm: float
    whole_norm: float
    total: float
    whole_total: float
    ratio: float

    @property
    def norm_share(self) -> float:
        """Of the Frobenius norm, 0 to 1; 1 where there was nothing."""
        return self.norm / self.whole_norm if self.whole_norm else 1.0

    @property
    def total_share(self) -> float:
        """Of the sum of singular values, 0 to 1; 1 where there was nothing."""
        return self.total / self.whole_total if self.whole_total else 1.0

    @property
    def line(self) -> str:
        """For the log."""
        return (
            f"{self.name}: rank {self.own_rank} -> {self.rank}, Frobenius norm retained {self.norm_share:.2%}, "
            f"sum of singular values retained {self.total_share:.2%}, greatest by least {self.ratio:.1f}"
        )


def retained_of(name: str, s: Tensor, *, rank: int, own_rank: int, scale: float = 1.0) -> Retained:
    """What is left of a module at a rank.

    Args:
        name: See `Retained`.
        s: All singular values, from the greatest down. Shape [n].
        rank: How many are kept.
        own_rank: See `Retained`.
        scale: Of the product they are of.
    """
    values = (s.double() if s.device.type == "cpu" else s.cpu().double()) * abs(scale)
    kept = values[:rank]
    least = float(kept[-1])
    return Retained(
        name,
        rank,
        own_rank,
        norm=float(kept.square().sum().sqrt()),
        whole_norm=float(values.square().sum().sqrt()),
        total=float(kept.sum()),
        whole_total=float(values.sum()),
        ratio=float(kept[0]) / least if least else math.inf,
    )


def summary(modules: Sequence[Retained]) -> str:
    """One line: norm retained (of all modules together, their mean and the least), and the average rank."""
    shares = [module.norm_share for module in modules]
    whole = math.hypot(*(module.whole_norm for module in modules))
    kept = math.hypot(*(module.norm for module in modules))
    worst = min(modules, key=lambda module: module.norm_share)
    ranks = [module.rank for module in modules]
    return (
        f"Frobenius norm retained: {kept / whole if whole else 1:.2%} of all {len(modules)} modules, "
        f"{sum(shares) / len(shares):.2%} on average, {worst.norm_share:.2%} at least ({worst.name}); "
        f"rank {sum(ranks) / len(ranks):.4g} on average, {min(ranks)} to {max(ranks)}"
    )
