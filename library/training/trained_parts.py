"""Which parts of a whole model train, and at which rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from library.errors import OptionError

if TYPE_CHECKING:
    from torch.nn import Parameter


@dataclass(frozen=True)
class Part:
    """Parameters that share a learning rate.

    Attributes:
        name: For logs: that of the denoiser or of an encoder, or of a part of the denoiser with a rate of its own.
        rate: 0 means that it does not train.
        parameters: {name in the saved state: parameter}.
    """

    name: str
    rate: float
    parameters: Mapping[str, Parameter]

    @property
    def count(self) -> int:
        """How many numbers."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def part_rates(
    names: Sequence[str], learning_rate: float, block_rates: Sequence[float] | None, num_frozen: int
) -> tuple[float, ...]:
    """Learning rates of the denoiser's parts.

    Args:
        names: Of the parts: embedders, each block, what is behind them.
        learning_rate: Where `block_rates` is None.
        block_rates: One for each part.
        num_frozen: Blocks at the end that get 0.

    Raises:
        OptionError: There are not as many rates as parts, or not as many blocks as shall be frozen.
    """
    depth = len(names) - 2
    if block_rates is not None and len(block_rates) != len(names):
        raise OptionError(
            f"--block_lr takes {len(names)} rates for this model ({names[0]}, {depth} blocks from {names[1]} to "
            f"{names[-2]}, {names[-1]}), got {len(block_rates)}."
        )
    if num_frozen > depth:
        raise OptionError(f"--num_last_block_to_freeze {num_frozen}: the model has {depth} blocks. Lower it.")
    rates = list(block_rates or [learning_rate] * len(names))
    rates[depth + 1 - num_frozen : depth + 1] = [0.0] * num_frozen
    return tuple(rates)


def denoiser_parts(parts: Mapping[str, Mapping[str, Parameter]], rates: Sequence[float], name: str) -> list[Part]:
    """Parts with their rates; those of one rate are one part where all that train have the same.

    Args:
        parts: {name: {name: parameter}} in the order of `rates`.
        rates: One for each part.
        name: Of the part where there is one.
    """
    each = [Part(own, rate, parameters) for (own, parameters), rate in zip(parts.items(), rates, strict=True)]
    trained = {part.rate for part in each if part.rate > 0}
    if len(trained) != 1:
        return each
    merged = {key: p for part in each if part.rate > 0 for key, p in part.parameters.items()}
    return [Part(name, trained.pop(), merged), *(part for part in each if part.rate == 0)]


def train_only(parts: Iterable[Part]) -> list[Part]:
    """Let gradients flow to the parts with a rate above 0, and to no other; returns those."""
    trained = []
    for part in parts:
        for parameter in part.parameters.values():
            parameter.requires_grad_(part.rate > 0)
        if part.rate > 0 and part.parameters:
            trained.append(part)
    return trained


def optimizer_groups(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer."""
    return [{"params": list(part.parameters.values()), "lr": part.rate} for part in parts]
