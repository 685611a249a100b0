"""What a block is called with, how much it has to compute, and what it is timed with where time is short."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from library.records import Size
from library.training.forecast.batch_sizes import BatchSize
from library.training.forecast.block_calls import block_calls
from library.training.forecast.block_times import fill, smaller
from library.training.forecast.fake_passes import FakeDenoiser, Passes

HEADS, DIM = 2, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, x):
        x = self.layer(x)
        return F.scaled_dot_product_attention(x, x, x)


class Row(nn.Module):
    """Three blocks: the first, one between, the last."""

    def __init__(self):
        super().__init__()
        self.head, self.blocks = nn.Linear(DIM, DIM), nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return x


@given(st.integers(1, 3), st.integers(1, 9))
def test_operations_are_those_of_products_of_matrices(batch, tokens):
    with torch.device("meta"):
        denoiser = FakeDenoiser(Row())
    calls = block_calls(denoiser, lambda: {"x": torch.ones(batch, HEADS, tokens, DIM)}, Passes())
    linear = 2 * batch * HEADS * tokens * DIM * DIM
    attention = 2 * (2 * batch * HEADS * tokens * tokens * DIM)
    assert list(calls) == [0, 1, 2]
    for call in calls.values():
        assert call.arguments[0].shape == (batch, HEADS, tokens, DIM)
        assert call.operations == linear + attention


def test_random_weights_have_the_shapes_and_the_format_of_those_they_stand_for():
    with torch.device("meta"):
        block = nn.Linear(400, 300).to(torch.bfloat16).requires_grad_(False)
        block.register_buffer("bits", torch.empty(300, 7, dtype=torch.float8_e4m3fn))
        block.register_buffer("numbers", torch.empty(0, 3, dtype=torch.uint8))
    fill(block, torch.device("cpu"))
    assert (block.weight.shape, block.weight.dtype, block.weight.is_meta) == ((300, 400), torch.bfloat16, False)
    assert 0.5 < block.weight.float().std() * 400**0.5 < 2 and not block.weight.requires_grad
    assert (block.bits.shape, block.bits.dtype) == ((300, 7), torch.float8_e4m3fn)
    assert block.numbers.shape == (0, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_smaller_batches_begin_with_the_batch_and_end_with_one_small_picture(width, height, number):
    batch = BatchSize(Size(64 * width, 64 * height), number)
    found = list(smaller(batch))
    assert found[0] == batch and found[-1] == BatchSize(Size(64, 64), 1)
    areas = [each.area for each in found]
    assert areas == sorted(set(areas), reverse=True)
    assert all(side % 64 == 0 for each in found for side in each.size)
