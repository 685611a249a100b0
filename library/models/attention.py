"""Attention as the models here use it: one function, computed by torch.

Sources: Vaswani et al. 2017, arXiv:1706.03762; Dao et al. 2022, arXiv:2205.14135 (without a table of scores).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# query, key, value, bias, which is added to the scores: see `torch_attention`
Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def torch_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(query keyᵀ / √D + bias) value

    Args:
        query: Shape [B, H, N, D].
        key: Shape [B, H, M, D].
        value: Shape [B, H, M, D].
        bias: For each key. Shape [B, 1, 1, M], in the dtype of the query.

    Returns:
        Shape [B, H, N, D].
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
