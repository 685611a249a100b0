"""Swapped blocks leave the device, but for the buffers that they take turns in."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from library.memory.block_swap import BlockSwapper
from library.memory.swap_plan import swap_plan
from library.training.forecast.device_memory import blocks_on_device


@given(st.integers(1, 40), st.integers(0, 4), st.integers(1, 10**9))
def test_more_swapped_blocks_never_take_more(depth, prefetch, size):
    takes = [blocks_on_device([size] * depth, swap_plan(depth, number, prefetch)) for number in range(depth + 2)]
    assert takes == sorted(takes, reverse=True)
    assert takes[0] == depth * size and takes[-1] == min(depth, 1 + prefetch) * size


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.integers(0, 4))
def test_all_blocks_swapped_leaves_the_buffers_each_as_large_as_its_largest_block(sizes, prefetch):
    plan = swap_plan(len(sizes), len(sizes), prefetch)
    buffers = [[size for index, size in enumerate(sizes) if plan.buffer(index) == b] for b in range(plan.num_buffers)]
    assert blocks_on_device(sizes, plan) == sum(max(takers) for takers in buffers)


def test_a_real_swapper_takes_what_is_foretold():
    blocks = [torch.nn.Linear(64, 32 * (index % 2 + 1), bias=False) for index in range(6)]
    sizes = [block.weight.numel() * 4 for block in blocks]
    plan = swap_plan(6, 4)
    stay = sum(size for index, size in enumerate(sizes) if index not in plan.swapped)
    swapper = BlockSwapper(blocks, plan, torch.device("cpu"))
    assert blocks_on_device(sizes, plan) == stay + swapper.device_bytes
