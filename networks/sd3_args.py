"""The --network_args of networks.lora_sd3: parsed and checked without torch, before any weights are read.

Every value is a string, as it is typed. All that is wrong is told at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from library.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sd3NetworkArgs:
    """Parsed --network_args.

    Attributes:
        context_attn_dim, context_mlp_dim, context_mod_dim, x_attn_dim, x_mlp_dim, x_mod_dim: Rank in the attention,
            feed-forward and modulation layers of the context and image halves of the blocks. 0 makes no adapter
            there, None takes --network_dim.
        emb_dims: Ranks of context_embedder, t_embedder, x_embedder, y_embedder, and of the final layer's modulation
            and linear layer; 0 makes no adapter there. None makes none at all.
        train_block_indices: The joint blocks that get adapters; None is all of them.
        conv_dim, conv_alpha: Rank and alpha (unset: 1) of x_embedder in place of the third of emb_dims, even where that
            is 0. Without emb_dims they have no effect.
        split_qkv: Query, key and value have their own factors.
        train_t5xxl: T5 gets adapters too.
        dropout, rank_dropout, module_dropout: Chances in [0, 1).
        loraplus_lr_ratio, loraplus_unet_lr_ratio, loraplus_text_encoder_lr_ratio: Above 0; the special ones win.
        verbose: The log lists the modules.
    """

    context_attn_dim: int | None = None
    context_mlp_dim: int | None = None
    context_mod_dim: int | None = None
    x_attn_dim: int | None = None
    x_mlp_dim: int | None = None
    x_mod_dim: int | None = None
    emb_dims: tuple[int, ...] | None = None
    train_block_indices: frozenset[int] | None = None
    conv_dim: int | None = None
    conv_alpha: float | None = None
    split_qkv: bool = False
    train_t5xxl: bool = False
    dropout: float | None = None
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None
    verbose: bool = False

    def warnings(self) -> tuple[str, ...]:
        """Arguments that are known but have no effect as they are given."""
        useless = []
        if self.conv_dim is not None and self.emb_dims is None:
            useless.append("conv_dim has no effect without emb_dims (x_embedder is the only convolution)")
        if self.conv_alpha is not None and (self.conv_dim is None or self.emb_dims is None):
            useless.append("conv_alpha has no effect without conv_dim and emb_dims")
        return tuple(f"--network_args {text}." for text in useless)


def parse_network_args(kwargs: Mapping[str, object], depth: int | None = None) -> Sd3NetworkArgs:
    """Read the arguments.

    Args:
        kwargs: {name: value as typed}
        depth: Number of joint blocks; None leaves the upper end of train_block_indices unchecked.

    Raises:
        OptionError: Unknown names and wrong values, all of them.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, raw in kwargs.items():
        if name not in _PARSERS:
            problems.append(_unknown(name))
        elif raw is not None:
            try:
                values[name] = _PARSERS[name](str(raw).strip(), depth)
            except _Wrong as wrong:
                problems.append(f"{name}={raw}: {wrong}")
    if problems:
        raise OptionError("--network_args " + "; ".join(problems) + ".")
    return Sd3NetworkArgs(**values)


class _Wrong(Exception):
    """What a value has to be."""


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _PARSERS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_PARSERS)}"
    return f"{name} is not an argument of this network ({hint})"


def _number(convert: Callable[[str], T], text: str, what: str) -> T:
    try:
        return convert(text)
    except ValueError:
        raise _Wrong(f"must be {what}") from None


def _rank(text: str, depth: int | None) -> int:
    value = _number(int, text, "a rank, 0 or more")
    if value < 0:
        raise _Wrong("must be a rank, 0 or more")
    return value


def _chance(text: str, depth: int | None) -> float:
    value = _number(float, text, "a number from 0 to below 1")
    if not 0 <= value < 1:
        raise _Wrong("must be a number from 0 to below 1")
    return value


def _above_zero(text: str, depth: int | None) -> float:
    value = _number(float, text, "a number above 0")
    if not 0 < value < float("inf"):
        raise _Wrong("must be a number above 0")
    return value


def _flag(text: str, depth: int | None) -> bool:
    table = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in table:
        raise _Wrong("must be True or False")
    return table[text.lower()]


def _emb_dims(text: str, depth: int | None) -> tuple[int, ...]:
    names = "context_embedder, t_embedder, x_embedder, y_embedder, final layer modulation, final layer linear"
    items = [item.strip() for item in text.removeprefix("[").removesuffix("]").split(",")]
    if len(items) != 6 or not all(item.isascii() and item.isdigit() for item in items):
        raise _Wrong(f"must be six ranks, 0 or more, as in [2,3,4,5,6,7], for {names}")
    return tuple(int(item) for item in items)


def _block_indices(text: str, depth: int | None) -> frozenset[int] | None:
    if text.lower() == "all":
        return None
    if text.lower() in ("none", ""):
        return frozenset()
    last = depth - 1 if depth else None
    valid = f"0 to {last}" if depth else "0 and up"
    indices: set[int] = set()
    for item in text.removeprefix("[").removesuffix("]").split(","):
        low, dash, high = (piece.strip() for piece in item.partition("-"))
        if not (low.isascii() and low.isdigit()) or (dash and not (high.isascii() and high.isdigit())):
            raise _Wrong(f'"{item.strip()}" is no block index; give all, none, or a list like 0-3,7 of {valid}')
        start, end = int(low), int(high) if dash else int(low)
        if start > end:
            raise _Wrong(f'the range "{item.strip()}" runs backwards; write {end}-{start}')
        if last is not None and end > last:
            raise _Wrong(f"this model has no block {end}; its blocks are {valid}")
        indices.update(range(start, end + 1))
    return frozenset(indices)


_PARSERS: dict[str, Callable[[str, int | None], Any]] = {
    "context_attn_dim": _rank,
    "context_mlp_dim": _rank,
    "context_mod_dim": _rank,
    "x_attn_dim": _rank,
    "x_mlp_dim": _rank,
    "x_mod_dim": _rank,
    "emb_dims": _emb_dims,
    "train_block_indices": _block_indices,
    "conv_dim": _rank,
    "conv_alpha": _above_zero,
    "split_qkv": _flag,
    "train_t5xxl": _flag,
    "dropout": _chance,
    "rank_dropout": _chance,
    "module_dropout": _chance,
    "loraplus_lr_ratio": _above_zero,
    "loraplus_unet_lr_ratio": _above_zero,
    "loraplus_text_encoder_lr_ratio": _above_zero,
    "verbose": _flag,
}
