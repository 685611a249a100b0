"""Filling modules that were built on the meta device."""

import torch
from torch import nn

from library.models.assign import assign_tensors


def test_chunks_of_one_tensor_may_change_while_others_are_read_backward():
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False, device="meta") for _ in range(2)])
    first, second = torch.ones(4, 2).chunk(2)
    assign_tensors(layers, {"0.weight": first, "1.weight": second}, "layers")
    loss = layers[1](layers[0](torch.ones(1, 2, requires_grad=True))).sum()
    layers[1].weight.register_post_accumulate_grad_hook(lambda weight: weight.sub_(weight.grad))
    loss.backward()
    assert layers[0].weight.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]
