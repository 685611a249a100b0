"""What the vectors of a new word begin as."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from library.rng import torch_stream


def rows_of(table: Tensor, ids: Sequence[int]) -> Tensor:
    """Rows of a table [V, D], one for each id. Shape [n, D], float32."""
    return table.detach()[torch.tensor(list(ids), device=table.device)].float()


def drawn_rows(table: Tensor, number: int, *, seed: int, encoder: str) -> Tensor:
    """Random rows that lie as those of the table do: around its mean, with its spread in every place.

    Args:
        table: Shape [V, D].
        number: Of rows.
        seed: Of the run.
        encoder: Whose table it is; each has a stream of its own.

    Returns:
        Shape [n, D], float32, on the CPU.
    """
    rows = table.detach().float()
    draws = torch.randn(number, table.shape[1], generator=torch_stream(seed, "textual inversion", encoder))
    return rows.mean(dim=0).cpu() + rows.std(dim=0).cpu() * draws
