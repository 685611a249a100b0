"""Where in a weights file one network lies: what stands before its names, told by a tensor that it always has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from library.checkpoint.weights import WeightFiles


def prefix_of(source: WeightFiles, mark: str, preferred: Iterable[str]) -> str | None:
    """What stands before `mark`; of several, the preferred, else the shortest. None where it is nowhere."""
    prefixes = {name.removesuffix(mark) for name in source.tensors if name.endswith(mark)}
    return next((prefix for prefix in preferred if prefix in prefixes), min(prefixes, key=len, default=None))


def names_under(source: WeightFiles, prefix: str, modules: tuple[str, ...]) -> dict[str, str]:
    """{name in the file: name without prefix} of what begins with one of `modules` behind the prefix."""
    stripped = {name: name.removeprefix(prefix) for name in source.tensors if name.startswith(prefix)}
    return {name: own for name, own in stripped.items() if own.startswith(modules)}


def first_of(names: Sequence[str]) -> str:
    """The first three of names, for an error."""
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
