"""Networks that are networks.lora with another kind of adapter: the same tables, files and arguments, but for some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from library.errors import OptionError
from networks.arg_parsing import LoraArgs


def refuse_arguments(
    kwargs: Mapping[str, object], reasons: Mapping[str, str], module: str, neuron_dropout: float | None = None
) -> None:
    """Refuse what networks.lora has and the module has not.

    Args:
        kwargs: --network_args, {name: value as typed}.
        reasons: {name of an argument: why it is not there}
        module: As --network_module has it.
        neuron_dropout: --network_dropout, where it does not come as the argument `dropout`.

    Raises:
        OptionError: One is given.
    """
    given = [name for name, value in kwargs.items() if name in reasons and value is not None]
    if neuron_dropout and "dropout" not in given:
        given.append("dropout")
    if given:
        names = ["dropout (--network_dropout)" if name == "dropout" else name for name in given]
        why = "; ".join(dict.fromkeys(reasons[name] for name in given))
        raise OptionError(f"--network_args {', '.join(names)}: --network_module {module} has no such argument, {why}.")


def given_ranks(args: LoraArgs) -> Iterator[tuple[str, int]]:
    """Every rank above 0 that the arguments set, with the name of the argument."""
    for field in fields(args):
        value: Any = getattr(args, field.name)
        if value is None or not field.name.endswith(("_dim", "_dims")):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            rank = item[1] if isinstance(item, tuple) else item
            if rank:
                yield field.name, rank
