"""The --network_args of networks.lora for SD1, SD2 and SDXL: parsed and checked without torch, before any weights are
read.

Every value is a string, as it is typed. All that is wrong is told at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from networks.arg_parsing import (
    LORA_PARSERS,
    LoraArgs,
    Parser,
    WrongValue,
    not_negative,
    number,
    parse_values,
    rank,
)
from networks.unet_blocks import BlockLayout

T = TypeVar("T")

# weight of the i-th of n blocks, n above 1
_PRESETS: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda i, n: math.sin(math.pi / 2 * (n - 1 - i) / (n - 1)),
    "sine": lambda i, n: math.sin(math.pi / 2 * i / (n - 1)),
    "linear": lambda i, n: i / (n - 1),
    "reverse_linear": lambda i, n: (n - 1 - i) / (n - 1),
    "zeros": lambda i, n: 0.0,
}


@dataclass(frozen=True, kw_only=True)
class UnetNetworkArgs(LoraArgs):
    """Parsed --network_args. Lists have one value for each block, see `BlockLayout`.

    Attributes:
        conv_dim, conv_alpha: Rank and alpha (unset: 1) of convolutions that see more than one pixel. With them the
            residual blocks and changes of size get adapters too. An alpha of 0 is the rank, here and in the lists.
        block_dims, block_alphas: Rank and alpha of linear layers and 1x1 convolutions by block, in place of
            --network_dim and --network_alpha. Rank 0 makes no adapter.
        conv_block_dims, conv_block_alphas: The same for other convolutions, in place of conv_dim and conv_alpha.
        down_lr_weight, mid_lr_weight, up_lr_weight: Factors of the learning rate by block of a stretch. Those not given
            are 1.
        block_lr_zero_threshold: Factors up to here are 0. Blocks with factor 0 get no adapter.
        network_reg_dims: (pattern, rank) for adapters whose name has the pattern in it; the first that matches counts,
            and wins over all other ranks.
        network_reg_lrs: (pattern, learning rate), likewise.
    """

    conv_dim: int | None = None
    conv_alpha: float | None = None
    block_dims: tuple[int, ...] | None = None
    block_alphas: tuple[float, ...] | None = None
    conv_block_dims: tuple[int, ...] | None = None
    conv_block_alphas: tuple[float, ...] | None = None
    down_lr_weight: tuple[float, ...] | None = None
    mid_lr_weight: tuple[float, ...] | None = None
    up_lr_weight: tuple[float, ...] | None = None
    block_lr_zero_threshold: float = 0.0
    network_reg_dims: tuple[tuple[str, int], ...] = ()
    network_reg_lrs: tuple[tuple[str, float], ...] = ()

    @property
    def has_convolutions(self) -> bool:
        """Whether residual blocks and changes of size get adapters."""
        return self.conv_dim is not None or self.conv_block_dims is not None

    def rate_factors(self, layout: BlockLayout) -> tuple[float, ...] | None:
        """Factors of the learning rate for all blocks; None where none are given."""
        given = (self.down_lr_weight, self.mid_lr_weight, self.up_lr_weight)
        if given == (None, None, None):
            return None
        lengths = (layout.num_down, layout.num_middle, layout.num_up)
        row = layout.row(*(weights or (1.0,) * length for weights, length in zip(given, lengths, strict=True)))
        return tuple(0.0 if factor <= self.block_lr_zero_threshold else factor for factor in row)

    def warnings(self, layout: BlockLayout) -> tuple[str, ...]:
        """Arguments that are known but have no effect as they are given."""
        useless = []
        if not self.has_convolutions:
            names = [name for name in ("conv_alpha", "conv_block_alphas") if getattr(self, name) is not None]
            useless += [f"{name} has no effect without conv_dim or conv_block_dims" for name in names]
        if self.block_lr_zero_threshold and self.rate_factors(layout) is None:
            useless.append(
                "block_lr_zero_threshold has no effect without down_lr_weight, mid_lr_weight or up_lr_weight"
            )
        for name in ("block_dims", "conv_block_dims"):
            idle = [i for i, value in enumerate(getattr(self, name) or ()) if value and layout.pattern(i) is None]
            if idle:
                useless.append(f"{name}: no adapters are made in blocks {' and '.join(map(str, idle))}")
        return tuple(f"--network_args {text}." for text in useless)


def parse_network_args(kwargs: Mapping[str, object], layout: BlockLayout) -> UnetNetworkArgs:
    """Read the arguments.

    Args:
        kwargs: {name: value as typed}
        layout: Which blocks lists are for.

    Raises:
        OptionError: Unknown names and wrong values, all of them.
    """
    return UnetNetworkArgs(**parse_values(kwargs, network_arg_parsers(layout)))


def network_arg_parsers(layout: BlockLayout) -> dict[str, Parser]:
    """{name of an argument: how its value is read}"""
    ranks, alphas = (
        partial(_per_block, layout=layout, read=read, what=what)
        for read, what in ((rank, "ranks"), (not_negative, "alphas"))
    )
    return {
        "conv_dim": rank,
        "conv_alpha": not_negative,
        "block_dims": ranks,
        "block_alphas": alphas,
        "conv_block_dims": ranks,
        "conv_block_alphas": alphas,
        "down_lr_weight": partial(_weights, length=layout.num_down),
        "mid_lr_weight": partial(_weights, length=layout.num_middle, has_presets=False),
        "up_lr_weight": partial(_weights, length=layout.num_up),
        "block_lr_zero_threshold": not_negative,
        "network_reg_dims": partial(_by_pattern, read=rank, what="rank"),
        "network_reg_lrs": partial(_by_pattern, read=not_negative, what="learning rate"),
        **LORA_PARSERS,
    }


def _per_block(text: str, *, layout: BlockLayout, read: Callable[[str], T], what: str) -> tuple[T, ...]:
    items = _items(text)
    if len(items) != layout.num_blocks:
        raise WrongValue(f"must be {layout.num_blocks} {what}, one for each block ({layout.words}), not {len(items)}")
    return tuple(map(read, items))


def _weights(text: str, *, length: int, has_presets: bool = True) -> tuple[float, ...]:
    """One number for all, a list, or a preset such as cosine+.25."""
    items = _items(text)
    if len(items) == 1:
        try:
            return (not_negative(items[0]),) * length
        except WrongValue:
            if not has_presets or _is_number(items[0]):
                raise
            return _preset(items[0], length)
    if len(items) != length:
        words = f"{length} numbers, one for each block, or one for all" if length > 1 else "one number"
        raise WrongValue(f"must be {words}, not {len(items)}")
    return tuple(map(not_negative, items))


def _preset(text: str, length: int) -> tuple[float, ...]:
    name, _, base = (piece.strip() for piece in text.partition("+"))
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(_PRESETS)}"
        raise WrongValue(f'"{name}" is no preset ({hint}); give a number, {length} numbers or a preset like cosine+.25')
    added = not_negative(base) if "+" in text else 0.0
    return tuple(_PRESETS[name](index, length) + added for index in range(length))


def _by_pattern(text: str, *, read: Callable[[str], T], what: str) -> tuple[tuple[str, T], ...]:
    pairs = []
    for item in text.split(","):
        pattern, equals, value = item.strip().rpartition("=")
        if not equals or not pattern:
            raise WrongValue(f'"{item}" is no pattern={what}')
        try:
            re.compile(pattern)
        except re.error as error:
            raise WrongValue(f'"{pattern}" is no regular expression ({error})') from None
        pairs.append((pattern, read(value)))
    return tuple(pairs)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.removeprefix("[").removesuffix("]").split(",")]


def _is_number(text: str) -> bool:
    try:
        number(float, text, "a number")
    except WrongValue:
        return False
    return True
