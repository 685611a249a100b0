"""Timing a block leaves no trace in what is trained."""

import torch
from torch import nn

from library.training.block_timing import BlockTime, take_gradients, time_block


class Block(nn.Module):
    """Counts its passes."""

    def __init__(self):
        super().__init__()
        self.layer, self.modes = nn.Linear(4, 4), []

    def forward(self, x, y):
        self.modes.append(torch.is_grad_enabled())
        return None, self.layer(x) + y


def test_gradients_are_computed_and_forgotten():
    block, heard = Block(), []
    inputs = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    for weight in block.parameters():
        weight.register_post_accumulate_grad_hook(heard.append)
    time = time_block(
        block, inputs, seconds=0, is_trained=True, weights=[*block.parameters(), nn.Parameter(torch.ones(2))]
    )
    assert time.forward > 0 and time.backward > 0 and time.total == time.forward + time.backward
    assert not heard and all(tensor.grad is None for tensor in (*inputs, *block.parameters()))
    assert block.modes == [True] * 4  # the first is not counted


def test_without_training_there_is_no_backward_pass():
    block = Block()
    time = time_block(block, (torch.randn(2, 4), torch.randn(2, 4)), seconds=0, is_trained=False)
    assert isinstance(time, BlockTime) and time.backward == 0
    assert block.modes == [False] * 4


def test_the_backward_pass_goes_to_all_that_takes_part():
    reached = []
    x, unused = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    x.register_hook(reached.append)
    take_gradients((None, x * 2), [x, unused, 5])
    assert len(reached) == 1
    take_gradients(torch.ones(3), [x])  # nothing to differentiate
    take_gradients(x * 2, [])
