"""Which layers of SD1, SD2 and SDXL get an adapter, of what rank and with what learning rate: the tables behind
networks.lora for U-Nets.

The tables are over published names. Without torch: what leaves nothing to train is known before any weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from networks.targets import CLIP_LAYERS, PlannedModule, Slot, TargetRule, adapter_name, plan_modules
from networks.unet_args import UnetNetworkArgs
from networks.unet_blocks import BlockLayout
from networks.unet_layers import DENOISER, UnetNames

T = TypeVar("T")

_ANYWHERE = r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d"
_ATTENTION = r"\.(proj_in|proj_out|transformer_blocks\..+)"
_RESIDUAL = r"\.(emb_layers\.1|skip_connection)"
_CONVOLUTIONS = r"\.(in_layers\.2|out_layers\.3|op|conv)"


def denoiser_rules(
    args: UnetNetworkArgs, layout: BlockLayout, rank: int, alpha: float | None
) -> tuple[TargetRule, ...]:
    """The table for the U-Net, over published names."""
    factors = args.rate_factors(layout)
    if factors is None and not _has_lists(args):
        return _rules(_ANYWHERE, rank, alpha, _convolution(args, None))
    rules: list[TargetRule] = []
    for block in range(layout.num_blocks):
        place = layout.pattern(block)
        if place is not None and (factors is None or factors[block]):
            own_rank, own_alpha = _at(args.block_dims, block, rank), _at(args.block_alphas, block, alpha)
            rules += _rules(place, own_rank, own_alpha, _convolution(args, block))
    return tuple(rules)


def _rules(place: str, rank: int, alpha: float | None, convolution: tuple[int, float] | None) -> tuple[TargetRule, ...]:
    attention = TargetRule(place + _ATTENTION, rank, alpha)
    if convolution is None:
        return (attention,)
    return attention, TargetRule(place + _RESIDUAL, rank, alpha), TargetRule(place + _CONVOLUTIONS, *convolution)


def _convolution(args: UnetNetworkArgs, block: int | None) -> tuple[int, float] | None:
    """Rank and alpha of convolutions of more than one pixel; None where residual blocks get no adapters at all."""
    if not args.has_convolutions:
        return None
    rank, alpha = args.conv_dim or 0, 1.0 if args.conv_alpha is None else args.conv_alpha
    if block is None:
        return rank, alpha
    return _at(args.conv_block_dims, block, rank), _at(args.conv_block_alphas, block, alpha)


def _has_lists(args: UnetNetworkArgs) -> bool:
    return any((args.block_dims, args.block_alphas, args.conv_block_dims, args.conv_block_alphas))


def _at(values: Sequence[T] | None, index: int, default: T) -> T:
    return default if values is None else values[index]


def plan_denoiser(names: UnetNames, args: UnetNetworkArgs, rank: int, alpha: float | None) -> tuple[PlannedModule, ...]:
    """The layers of the U-Net that get adapters, by their names in our files, in the order of the model."""
    own = {published: name for name, published in names.published.items()}
    planned = plan_modules(own, denoiser_rules(args, names.layout, rank, alpha))
    return with_own_ranks([replace(plan, name=own[plan.name]) for plan in planned], DENOISER, args, alpha)


def plan_encoder(
    layers: Iterable[str], slot: Slot, args: UnetNetworkArgs, rank: int, alpha: float | None
) -> tuple[PlannedModule, ...]:
    """The layers of a text encoder that get adapters, for names as files have them."""
    return with_own_ranks(plan_modules(layers, (TargetRule(CLIP_LAYERS, rank, alpha),)), slot, args, alpha)


def with_own_ranks(
    planned: Iterable[PlannedModule], slot: Slot, args: UnetNetworkArgs, alpha: float | None
) -> tuple[PlannedModule, ...]:
    """The plan with the ranks of network_reg_dims."""
    if not args.network_reg_dims:
        return tuple(planned)
    kept = []
    for plan in planned:
        match = first_match(args.network_reg_dims, adapter_name(slot.prefix, plan.name))
        if match is None:
            kept.append(plan)
        elif match[1] > 0:
            follows_rank = not alpha and plan.alpha == plan.rank
            kept.append(replace(plan, rank=match[1], alpha=float(match[1]) if follows_rank else plan.alpha))
    return tuple(kept)


def first_match(pairs: Sequence[tuple[str, T]], name: str) -> tuple[int, T] | None:
    """Place and value of the first pair whose pattern is found in a name."""
    return next(((i, value) for i, (pattern, value) in enumerate(pairs) if re.search(pattern, name)), None)


def unmatched(args: UnetNetworkArgs, models: Mapping[Slot, Iterable[str]]) -> tuple[str, ...]:
    """Warnings about patterns that are in no name of a layer; models: {slot: names as files have them}."""
    layers = [adapter_name(slot.prefix, name) for slot, names in models.items() for name in names]
    given = {"network_reg_dims": args.network_reg_dims, "network_reg_lrs": args.network_reg_lrs}
    return tuple(
        f'--network_args {argument}: no layer has "{pattern}" in its name, so it has no effect.'
        for argument, pairs in given.items()
        for pattern, _ in pairs
        if not any(re.search(pattern, layer) for layer in layers)
    )


@dataclass(frozen=True)
class RateGroup:
    """Adapters with a learning rate of their own.

    Attributes:
        name: Of the optimizer group.
        rate: In place of the model's.
        factor: Of the model's.
    """

    name: str
    rate: float | None = None
    factor: float = 1.0


def by_rate(
    planned: Iterable[PlannedModule], slot: Slot, args: UnetNetworkArgs, names: UnetNames
) -> dict[RateGroup, list[PlannedModule]]:
    """The plan by learning rates, in the order of the blocks: patterns of network_reg_lrs come last."""
    factors = args.rate_factors(names.layout) if slot == DENOISER else None
    groups: dict[tuple[int, int], tuple[RateGroup, list[PlannedModule]]] = {}
    for plan in planned:
        match = first_match(args.network_reg_lrs, adapter_name(slot.prefix, plan.name))
        block = None if factors is None else names.layout.block(names.published[plan.name])
        if match is not None:
            order, group = (1, match[0]), RateGroup(f"{slot.part_name} pattern {match[0] + 1}", rate=match[1])
        elif factors is not None and block is not None:
            order, group = (0, block), RateGroup(f"unet_block{block}", factor=factors[block])
        else:
            order, group = (0, -1), RateGroup(slot.part_name)
        groups.setdefault(order, (group, []))[1].append(plan)
    return dict(groups[order] for order in sorted(groups))


def nothing_to_train() -> str:
    """The message for arguments without any effect."""
    return (
        "--network_args leave 0 modules to train: every rank or every learning rate factor of the U-Net is 0, and no "
        "text encoder is trained. Ranks and factors above 0 make adapters."
    )
