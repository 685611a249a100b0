"""The --network_args of networks.lora_sd3: parsed and checked without torch, before any weights are read.

Every value is a string, as it is typed. All that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from networks.arg_parsing import LORA_PARSERS, LoraArgs, Parser, WrongValue, above_zero, flag, parse_values, rank


@dataclass(frozen=True, kw_only=True)
class Sd3NetworkArgs(LoraArgs):
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
    indices = partial(_block_indices, depth=depth)
    return Sd3NetworkArgs(**parse_values(kwargs, {**_PARSERS, "train_block_indices": indices}))


def _emb_dims(text: str) -> tuple[int, ...]:
    names = "context_embedder, t_embedder, x_embedder, y_embedder, final layer modulation, final layer linear"
    items = [item.strip() for item in text.removeprefix("[").removesuffix("]").split(",")]
    if len(items) != 6 or not all(item.isascii() and item.isdigit() for item in items):
        raise WrongValue(f"must be six ranks, 0 or more, as in [2,3,4,5,6,7], for {names}")
    return tuple(int(item) for item in items)


def _block_indices(text: str, depth: int | None = None) -> frozenset[int] | None:
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
            raise WrongValue(f'"{item.strip()}" is no block index; give all, none, or a list like 0-3,7 of {valid}')
        start, end = int(low), int(high) if dash else int(low)
        if start > end:
            raise WrongValue(f'the range "{item.strip()}" runs backwards; write {end}-{start}')
        if last is not None and end > last:
            raise WrongValue(f"this model has no block {end}; its blocks are {valid}")
        indices.update(range(start, end + 1))
    return frozenset(indices)


_PARSERS: dict[str, Parser] = {
    "context_attn_dim": rank,
    "context_mlp_dim": rank,
    "context_mod_dim": rank,
    "x_attn_dim": rank,
    "x_mlp_dim": rank,
    "x_mod_dim": rank,
    "emb_dims": _emb_dims,
    "train_block_indices": _block_indices,
    "conv_dim": rank,
    "conv_alpha": above_zero,
    "split_qkv": flag,
    "train_t5xxl": flag,
    **LORA_PARSERS,
}
