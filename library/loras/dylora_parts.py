"""A DyLoRA cut to lower ranks.

A pass that trains the ranks below r computes with these alone, at the strength alpha / rank of the whole
(`networks/dylora_adapter.py`). A file of the first r ranks has the same strength, and so acts as such a pass did.
"""

from __future__ import annotations

from collections.abc import Mapping

from library.families.lora_layout import LoraPair


def ranks_of_cuts(rank: int, unit: int) -> list[int]:
    """The multiples of `unit` below a rank."""
    return list(range(unit, rank, unit))


def cut_at(modules: Mapping[str, LoraPair], rank: int) -> dict[str, LoraPair]:
    """The first ranks of all modules; those that have no more stay as they are.

    Args:
        modules: {name: factors}
        rank: How many.
    """
    return {name: _first_ranks(pair, rank) for name, pair in modules.items()}


def _first_ranks(pair: LoraPair, rank: int) -> LoraPair:
    if rank >= pair.down.shape[0]:
        return pair
    return LoraPair(pair.down[:rank].contiguous(), pair.up[:, :rank].contiguous(), pair.scale)
