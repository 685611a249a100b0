"""Attention of packages: their order of axes, what takes a bias, and that every layer of a model is reached."""

import functools

import pytest
import torch
from torch.nn import functional as F

from library.models.attention import (
    flash_attention,
    heads_last,
    takes_bias,
    torch_attention,
    use_attention,
    xformers_attention,
)
from library.models.mmdit import MMDiT, MMDiTConfig

CONFIG = MMDiTConfig(
    depth=3,
    num_heads=2,
    head_dim=8,
    context_dim=12,
    pooled_dim=10,
    frequencies=16,
    position_side=8,
    dual_attention=(0,),
)


def heads(num_queries=5, num_keys=7):
    torch.manual_seed(0)
    return torch.randn(2, 3, num_queries, 8), torch.randn(2, 3, num_keys, 8), torch.randn(2, 3, num_keys, 8)


def of_tokens_first(query, key, value):
    """What packages define: softmax(query keyᵀ / √D) value for [B, N, H, D], written out."""
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(dim=-1), value)


def test_packages_get_tokens_before_heads_and_give_what_torch_gives():
    torch.testing.assert_close(heads_last(of_tokens_first, *heads()), torch_attention(*heads()))


def test_gradients_come_back_through_the_change_of_axes():
    gradients = []
    for attend in (functools.partial(heads_last, of_tokens_first), torch_attention):
        given = [tensor.requires_grad_() for tensor in heads()]
        gradients.append(torch.autograd.grad(attend(*given).square().sum(), given))
    torch.testing.assert_close(*gradients)


def test_xformers_leaves_a_bias_to_torch():
    bias = torch.randn(2, 1, 1, 7)
    assert torch.equal(xformers_attention(*heads(), bias), F.scaled_dot_product_attention(*heads(), attn_mask=bias))


def test_only_flash_attn_takes_no_bias():
    wrapped = functools.wraps(flash_attention)(lambda *given: flash_attention(*given))
    assert [takes_bias(attend) for attend in (torch_attention, xformers_attention, flash_attention, wrapped)] == [
        *(True, True, False, False)
    ]
    with pytest.raises(ValueError, match="no bias"):
        flash_attention(*heads(), torch.zeros(2, 1, 1, 7))


@torch.no_grad()
def test_every_attention_of_a_model_is_the_one_that_is_asked_for():
    model, calls = MMDiT(CONFIG), []
    inputs = torch.randn(1, 16, 8, 8), torch.tensor([500.0]), torch.randn(1, 4, 12), torch.randn(1, 10)

    def attend(query, key, value, bias):
        calls.append(query.shape)
        return torch_attention(query, key, value, bias)

    expected = model(*inputs)
    use_attention(model, attend)
    assert torch.equal(model(*inputs), expected)
    assert calls == [(1, 2, 20, 8), (1, 2, 16, 8), (1, 2, 20, 8), (1, 2, 20, 8)]  # the second is the image's own
    assert model.takes_bias
    use_attention(model, flash_attention)
    assert not model.takes_bias
