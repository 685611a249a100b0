"""Options that a dataset file leaves without effect, because it has a value of its own wherever they could apply."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from library.data.config.keys import KEYS
from library.data.config.spec_building import Table, Values

NOTHING: Mapping[str, str] = {}  # the user gave none of the values


def overridden_options(
    given: Mapping[str, str],
    base: Values,
    general: Collection[str],
    datasets: Sequence[tuple[Table, Sequence[Table]]],
) -> list[str]:
    """A line that names those which reach no dataset or subset, while one of these has another value; none if all do.

    Args:
        given: {key that the user gave: flag}.
        base: Values from the command line, else the built-in defaults, by key.
        general: Keys that [general] gives.
        datasets: Every dataset with its subsets, without faults.
    """
    flags = [flag for key, flag in given.items() if _is_overridden(key, base[key], general, datasets)]
    if not flags:
        return []
    verb = "has" if len(flags) == 1 else "have"
    return [f"{', '.join(flags)} {verb} no effect: the file gives values of its own, which go before options"]


def _is_overridden(
    key: str, value: Any, general: Collection[str], datasets: Sequence[tuple[Table, Sequence[Table]]]
) -> bool:
    found = []
    for dataset, subsets in datasets:
        for table in subsets if "subset" in KEYS[key].levels else [dataset]:
            if key not in {*general, *dataset.own, *table.own}:
                return False
            found.append(table.values[key])
    return any(_plain(key, own) != _plain(key, value) for own in found)


def _plain(key: str, value: Any) -> Any:
    """The value in one spelling: an ending may be written without its dot."""
    return value.removeprefix(".") if key == "caption_extension" else value
