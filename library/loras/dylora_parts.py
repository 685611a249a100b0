"""A DyLoRA cut to lower ranks.

A training pass that trains the ranks up to r multiplies what the network adds by sqrt(rank / r)
(`networks/dylora_adapter.py`), so that few ranks weigh as much as many. A file of the first r ranks has this in its
alpha, and so acts as such a pass does, at strength 1.
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
    whole = pair.down.shape[0]
    if rank >= whole:
        return pair
    down, up = pair.down[:rank].contiguous(), pair.up[:, :rank].contiguous()
    return LoraPair(down, up, pair.scale * (whole / rank) ** 0.5)
