"""Attention as the models here use it: one function, computed by torch or by a package with kernels of its own.

Sources: Vaswani et al. 2017, arXiv:1706.03762; Dao et al. 2022, arXiv:2205.14135 (without a table of scores).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

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


def xformers_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by the xformers package, on a GPU. Its only kernel for a bias is torch's, so torch takes those."""
    if bias is not None:
        return torch_attention(query, key, value, bias)
    from xformers.ops import memory_efficient_attention

    return heads_last(memory_efficient_attention, query, key, value)


def flash_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by the flash_attn package, on a GPU and in half precision; it knows no bias.

    Raises:
        ValueError: A bias is given. See `takes_bias`.
    """
    if bias is not None:
        raise ValueError("flash_attn takes no bias")
    from flash_attn import flash_attn_func

    return heads_last(flash_attn_func, query, key, value)


# by the names of their packages, which are those of the options
PACKAGES: Mapping[str, Attention] = {"xformers": xformers_attention, "flash_attn": flash_attention}


def heads_last(compute: Callable[[Tensor, Tensor, Tensor], Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call an attention that wants [B, N, H, D] with [B, H, N, D], and turn what it gives round."""
    attended: Tensor = compute(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attended.transpose(1, 2)


def takes_bias(attend: Attention) -> bool:
    """Whether an attention may be given a bias."""
    return inspect.unwrap(attend) is not flash_attention


def head_widths(model: nn.Module) -> list[int]:
    """How wide the heads of a model are, the narrowest first: each layer that attends has an `attend` and says it."""
    return sorted({int(module.head_width) for module in model.modules() if hasattr(module, "attend")})  # type: ignore[arg-type]


def use_attention(model: nn.Module, attend: Attention) -> None:
    """Let every layer of a model that attends do so by this function."""
    for module in model.modules():
        if hasattr(module, "attend"):
            module.attend = attend  # type: ignore[assignment]
