"""Matrices of low rank: singular values of up @ down and of whole matrices, how many of them to keep, and factors.

A product is never multiplied out: with up = Q_u R_u and down^T = Q_d R_d, its singular values are those of
R_u R_d^T, which has as many rows as the LoRA has ranks. Convolutions are seen as matrices [out, in * height * width].

Source: Golub and Van Loan, Matrix Computations, 4th edition, sections 2.4 and 8.6. The balanced split gives each factor
the root of the singular values, so both have the same norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RATIO, CUMULATIVE, FROBENIUS = "sv_ratio", "sv_cumulative", "sv_fro"
DYNAMIC_METHODS = (RATIO, FROBENIUS, CUMULATIVE)
_ROUNDING = 1e-7  # of a sum that ends in 1


class Singular(NamedTuple):
    """U [out, n], S [n] from the greatest down, Vh [n, in]: the matrix is U diag(S) Vh."""

    u: Tensor
    s: Tensor
    vh: Tensor


def svd_of_product(down: Tensor, up: Tensor) -> Singular:
    """Of the matrix up @ down.

    Args:
        down: Shape [rank, in, ...].
        up: Shape [out, rank, ...], the further axes of one element.

    Returns:
        In float64 (float32 on devices that have no other), n the smallest of out, rank and in.
    """
    down, up = _as_wide_matrix(down), _as_wide_matrix(up)
    if down.shape[0] >= min(down.shape[1], up.shape[0]):
        return svd_of_matrix(up @ down)
    q_up, r_up = torch.linalg.qr(up)  # [out, rank], [rank, rank]
    q_down, r_down = torch.linalg.qr(down.mT)  # [in, rank], [rank, rank]
    u, s, vh = svd_of_matrix(r_up @ r_down.mT)
    return Singular(q_up @ u, s, vh @ q_down.mT)


def svd_of_matrix(matrix: Tensor) -> Singular:
    """Of a whole matrix, in its own dtype. Shape [out, in, ...]; n is the smaller of both sides.

    Of a long matrix the square part is decomposed, which is several times as fast.
    """
    matrix = matrix.flatten(1)
    rows, columns = matrix.shape
    if rows < columns:
        u, s, vh = svd_of_matrix(matrix.mT)
        return Singular(vh.mT, s, u.mT)
    if rows == columns:
        return Singular(*torch.linalg.svd(matrix, full_matrices=False))
    q, r = torch.linalg.qr(matrix)
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    return Singular(q @ u, s, vh)


def factors_of(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(down [rank, in], up [out, rank]) of the greatest `rank` singular values, both with the same norm.

    They are the best approximation of that rank. What is 0 to a matrix stays 0 in both.
    """
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def chosen_rank(s: Tensor, *, rank: int, method: str | None = None, param: float | None = None) -> int:
    """How many singular values are kept: 1 or more, at most `rank` and at most as many as there are.

    Args:
        s: Singular values, from the greatest down. Shape [n].
        rank: The most to keep, and what is kept without a method.
        method: "sv_ratio": those above the greatest / param. "sv_cumulative": the first whose sum is param of the sum
            of all. "sv_fro": the first whose Frobenius norm is param of the whole norm.
        param: See there; above 1 for a ratio, else in (0, 1].
    """
    ceiling = min(rank, len(s))
    if method is None:
        return ceiling
    assert param is not None, "a method without its number"
    if not float(s[0]) > 0:
        return 1
    return max(1, min(_wanted_rank(s.double() if s.device.type != "mps" else s, method, param), ceiling))


def _wanted_rank(s: Tensor, method: str, param: float) -> int:
    if method == RATIO:
        return int((s * param > s[0]).sum())
    weights = s if method == CUMULATIVE else s.square()
    target = param if method == CUMULATIVE else param**2
    shares = weights.cumsum(0) / weights.sum()
    return int((shares < target - _ROUNDING).sum()) + 1


def norm_of(s: Tensor) -> float:
    """The Frobenius norm of the matrix with these singular values."""
    return float(torch.linalg.vector_norm(s))


def _as_wide_matrix(factor: Tensor) -> Tensor:
    wide = torch.float32 if factor.device.type == "mps" else torch.float64
    return factor.flatten(1).to(wide)
