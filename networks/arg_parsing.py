"""Reading --network_args: what the arguments of our networks have in common. Without torch.

Every value is a string, as it is typed. All that is wrong is told at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from library.errors import OptionError

T = TypeVar("T")
Parser = Callable[[str], Any]

DEFAULT_RANK = 4
_OF_LYCORIS = ("algo", "preset", "factor", "decompose_both", "use_tucker", "use_scalar", "dora_wd", "train_norm")


class WrongValue(Exception):
    """What a value has to be."""


@dataclass(frozen=True, kw_only=True)
class LoraArgs:
    """Parsed --network_args that every LoRA has.

    Attributes:
        dropout, rank_dropout, module_dropout: Chances in [0, 1).
        loraplus_lr_ratio, loraplus_unet_lr_ratio, loraplus_text_encoder_lr_ratio: Above 0; the special ones win.
        verbose: The log lists the modules.
    """

    dropout: float | None = None
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None
    verbose: bool = False


def parse_values(kwargs: Mapping[str, object], parsers: Mapping[str, Parser]) -> dict[str, Any]:
    """Read arguments; None is as if not given.

    Args:
        kwargs: {name: value as typed}
        parsers: {known name: how its value is read}; they raise `WrongValue`.

    Raises:
        OptionError: Unknown names and wrong values, all of them.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, raw in kwargs.items():
        if name not in parsers:
            problems.append(_unknown(name, parsers))
        elif raw is not None:
            try:
                values[name] = parsers[name](str(raw).strip())
            except WrongValue as wrong:
                problems.append(f"{name}={raw}: {wrong}")
    if problems:
        raise OptionError("--network_args " + "; ".join(problems) + ".")
    return values


def _unknown(name: str, known: Collection[str]) -> str:
    if name in _OF_LYCORIS:
        return f"{name} is not an argument of this network, but of --network_module=lycoris.kohya"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"{name} is not an argument of this network ({hint})"


def default_rank(network_dim: int | None) -> int:
    """--network_dim, checked, or its default.

    Raises:
        OptionError: It is below 1.
    """
    if network_dim is not None and network_dim < 1:
        raise OptionError(f"--network_dim must be at least 1, got {network_dim}.")
    return network_dim or DEFAULT_RANK


def number(convert: Callable[[str], T], text: str, what: str) -> T:
    """`convert(text)`; a text that is no number has to be `what`."""
    try:
        return convert(text)
    except ValueError:
        raise WrongValue(f"must be {what}") from None


def rank(text: str) -> int:
    """A rank; 0 makes no adapter."""
    value = number(int, text, "a rank, 0 or more")
    if value < 0:
        raise WrongValue("must be a rank, 0 or more")
    return value


def chance(text: str) -> float:
    """A number in [0, 1)."""
    value = number(float, text, "a number from 0 to below 1")
    if not 0 <= value < 1:
        raise WrongValue("must be a number from 0 to below 1")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = number(float, text, "a number above 0")
    if not 0 < value < float("inf"):
        raise WrongValue("must be a number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number, 0 or more."""
    value = number(float, text, "a number, 0 or more")
    if not 0 <= value < float("inf"):
        raise WrongValue("must be a number, 0 or more")
    return value


def flag(text: str) -> bool:
    """True or False."""
    table = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in table:
        raise WrongValue("must be True or False")
    return table[text.lower()]


LORA_PARSERS: dict[str, Parser] = {
    "dropout": chance,
    "rank_dropout": chance,
    "module_dropout": chance,
    "loraplus_lr_ratio": above_zero,
    "loraplus_unet_lr_ratio": above_zero,
    "loraplus_text_encoder_lr_ratio": above_zero,
    "verbose": flag,
}
"""Of the fields of `LoraArgs`."""
