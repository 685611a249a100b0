"""Rounding float32 to 16 bits so that changes smaller than the last bit are not lost.

A weight in bf16 has 8 significant bits: rounded to the nearest, a change below 1/512 of it is no change at all, however
often it comes. Rounded up or down at random, in proportion to the distance, the changes add up on average.

Sources: Gupta et al. 2015, arXiv:1502.02551 (stochastic rounding); Kahan 1965, doi:10.1145/363707.363723 (sums
that keep what was lost); Zamirai et al. 2020, arXiv:2010.06192 (both for training in bf16).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

_LOST_BITS = 16  # of a float32 that bf16 has no room for


@torch.no_grad()
def round_stochastically(target: Tensor, value: Tensor, generator: Generator) -> None:
    """Write a value into a bf16 tensor, rounded up with a chance of its distance to the number below.

    Args:
        target: Shape [...], bf16.
        value: Float32, of the same shape. It is overwritten.
        generator: On the device of the value.
    """
    target, value = _local(target), _local(value)
    noise = torch.randint(0, 1 << _LOST_BITS, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    noise.masked_fill_(~torch.isfinite(value), 0)  # a carry would make a number of what is none
    value.view(torch.int32).add_(noise).bitwise_and_(-1 << _LOST_BITS)
    target.copy_(value)


@torch.no_grad()
def round_with_rest(target: Tensor, rest: Tensor, value: Tensor) -> None:
    """Write a value as the sum of two bf16 tensors: the nearest number, and what that leaves out.

    Args:
        target: Shape [...], bf16.
        rest: Likewise.
        value: Float32, of the same shape. It is overwritten.
    """
    target, rest, value = _local(target), _local(rest), _local(value)
    target.copy_(value)
    rest.copy_(value.sub_(target))
    rest.masked_fill_(~torch.isfinite(rest), 0)


def _local(tensor: Any) -> Tensor:
    """The part of a sharded tensor that is here."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
