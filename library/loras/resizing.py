"""Smaller ranks for a finished LoRA: each module becomes its best approximation of that rank.

What a module adds is scale * up @ down. The scale stays as it is, so alpha goes with the rank, and the strength at
which people use the file stays right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from library.errors import CheckpointError
from library.families.lora_layout import LoraPair
from library.loras.low_rank import chosen_rank, factors_of, svd_of_product
from library.loras.retained import Retained, retained_of

if TYPE_CHECKING:
    from pathlib import Path

    from library.loras.low_rank import Singular


@dataclass(frozen=True)
class RankRule:
    """Which rank a module gets.

    Attributes:
        rank: Of linear layers; the most that they get with a method.
        conv_rank: The same for convolutions.
        method: See `chosen_rank`.
        param: See `chosen_rank`.
    """

    rank: int
    conv_rank: int
    method: str | None = None
    param: float | None = None

    def of(self, singular: Singular, *, is_convolution: bool) -> int:
        """The rank of a module with these singular values."""
        ceiling = self.conv_rank if is_convolution else self.rank
        return chosen_rank(singular.s, rank=ceiling, method=self.method, param=self.param)


def resize(
    modules: Mapping[str, LoraPair], rule: RankRule, *, device: torch.device | str = "cpu"
) -> tuple[dict[str, LoraPair], list[Retained]]:
    """All modules with the ranks of a rule, in their own number formats, and what is left of each.

    Args:
        modules: {name: factors}
        rule: Which ranks.
        device: Where it is computed.
    """
    resized, retained = {}, []
    for name, pair in modules.items():
        resized[name], left = resize_pair(name, pair, rule, device=device)
        retained.append(left)
    return resized, retained


def resize_pair(
    name: str, pair: LoraPair, rule: RankRule, *, device: torch.device | str = "cpu"
) -> tuple[LoraPair, Retained]:
    """One module. What has that rank already, or less, keeps its factors bit by bit."""
    singular = svd_of_product(pair.down.to(device), pair.up.to(device))
    own_rank = pair.down.shape[0]
    rank = rule.of(singular, is_convolution=pair.down.dim() > 2)
    left = retained_of(name, singular.s, rank=rank, own_rank=own_rank, scale=pair.scale)
    if rank >= own_rank:
        return pair, left
    down, up = factors_of(*singular, rank)
    down = down.reshape(rank, *pair.down.shape[1:]).to("cpu", pair.down.dtype)
    up = up.reshape(len(up), rank, *pair.up.shape[2:]).to("cpu", pair.up.dtype)
    return LoraPair(down, up, pair.scale), left


def check_numbers(modules: Mapping[str, LoraPair], option: str, path: Path) -> None:
    """Refuse a file with numbers that cannot be computed with.

    Raises:
        CheckpointError: NaN or infinite values.
    """
    if broken := [name for name, pair in modules.items() if not pair.is_finite]:
        raise CheckpointError(
            f"{option} {path}: {len(broken)} of its {len(modules)} modules have NaN or infinite values ({broken[0]}). "
            "The training has diverged: give a file that was saved earlier."
        )
