"""Rows of a context that are all zero, merged: a few stand for all of them, and the result is the same.

The context has no positions. Rows that are equal at the beginning are equal in every block, so one can stand for n of
them: as a query it gives what each would give, and as a key it has to weigh as much as all of them, exp(score) * n =
exp(score + log n). That is a bias on its scores. Leaving the rows out would change the result: attention does look at
them.

Source: the bias is that of keys which stand for several, Bolya et al. 2023, arXiv:2210.09461, section 3 ("proportional
attention"), where the merged rows are similar; here they are equal, which makes it exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from library.device import send

ROWS = 32  # numbers of rows are multiples of this, so that few shapes occur and the kernels' tiles are full
_FINENESS = 16  # multiples of a 16th up to 16 are whole in bfloat16
_LEAST_SHARE = 0.15


@dataclass(frozen=True)
class Merging:
    """Which rows of a context stay, and for how many they stand. On the CPU.

    Attributes:
        rows: Shape [B, M], int64.
        bias: For the scores of each as a key. Shape [B, M], float64.
    """

    rows: Tensor
    bias: Tensor

    def context(self, context: Tensor) -> Tensor:
        """The rows that stay, of a context [B, N, D]. Shape [B, M, D]."""
        rows = send(self.rows, context.device)
        return context.gather(1, rows[:, :, None].expand(-1, -1, context.shape[2]))

    def bias_for(self, context: Tensor) -> Tensor:
        """The bias where the context is, in float32, or float64 if that is its precision. Shape [B, M]."""
        return send(self.bias.to(torch.promote_types(context.dtype, torch.float32)), context.device)


def merging(is_used: Tensor) -> Merging | None:
    """How to merge the rows that are not used.

    The samples of a batch have the same number of rows M: one that uses fewer keeps more of its zeros.

    Args:
        is_used: False for rows that are all zero. On the CPU. Shape [B, N], bool.

    Returns:
        None where all would stay.
    """
    length = is_used.shape[1]
    used = is_used.sum(dim=1).tolist()
    most = max(number + min(2, length - number) for number in used)
    num_rows = -(-most // ROWS) * ROWS
    if num_rows >= length:
        return None
    rows = is_used.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices[:, :num_rows]
    bias = [[0.0] * number + _log_shares(length - number, num_rows - number) for number in used]
    return Merging(rows.contiguous(), torch.tensor(bias, dtype=torch.float64))


def _log_shares(number: int, left: int) -> list[float]:
    """Logarithms of the numbers of rows that those which are left stand for.

    The first one stands for nearly all, for a number whose logarithm is whole in bfloat16; the second one for what
    that leaves over, so that rounding in bfloat16 moves the sum by less than a thousandth; the others for themselves.

    Args:
        number: Of rows.
        left: Of rows that stay; at least 2, or all.
    """
    if left == number:
        return [0.0] * number
    most = number - left + 1  # the second one stands for itself at least
    first = math.floor(math.log(most) * _FINENESS) / _FINENESS
    return [first, math.log(number - (left - 2) - math.exp(first)), *[0.0] * (left - 2)]


def pays(merged: Merging, length: int, num_other: int, device: torch.device) -> bool:
    """Whether a device is faster with merged rows.

    On a CPU it always is. On a GPU a bias has its price: torch's fastest kernels (flash) take none, and the others need
    up to twice the time. Where attention has the share a of a block's time, and the share s of the tokens goes, a block
    takes (1 - a)(1 - s) + 2a(1 - s)² of its time. At width 1536 and 512 x 512 pixels, a is about 0.2, and s is 0.17 for
    a short caption: 0.93. At 1024 x 1024 pixels they are 0.44 and 0.05: 1.3. The limit lies between the two.

    Args:
        merged: From `merging`.
        length: Rows of the context before.
        num_other: Other tokens in the attention.
        device: That computes.
    """
    return _pays(length - merged.rows.shape[1], length + num_other, device)


def may_pay(length: int, num_other: int, device: torch.device) -> bool:
    """Whether there is a merging of contexts that `pays`: that of an empty text, if any."""
    return length > ROWS and _pays(length - ROWS, length + num_other, device)


def _pays(gone: int, num_tokens: int, device: torch.device) -> bool:
    return device.type == "cpu" or gone >= _LEAST_SHARE * num_tokens
