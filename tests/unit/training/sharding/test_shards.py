"""Rows of weights and of what belongs to them; units of a model."""

import pytest
import torch
from bitsandbytes.functional import dequantize_blockwise
from hypothesis import given
from hypothesis import strategies as st

from library.errors import OptionError
from library.memory.blocks import blocks
from library.models.mmdit import MMDiT, MMDiTConfig
from library.training.optimization.optimizer_state import load_optimizer_state, optimizer_state
from library.training.optimization.optimizers import make_optimizer
from library.training.sharding.limits import check_parts
from library.training.sharding.optimizer_shards import (
    BLOCK,
    keep_blocks_whole,
    own_average_state,
    own_optimizer_state,
)
from library.training.sharding.rows import Rows

SHAPES = ((6, 4), (5,), (3, 2, 2))


def parts(shape, number):
    return [Rows(shape, rank, number) for rank in range(number)]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_parts_are_the_whole_in_the_order_of_the_ranks(rows, number, width):
    whole = torch.arange(rows * width).view(rows, width)
    own = [part.own(whole) for part in parts((rows, width), number)]
    assert torch.equal(torch.cat(own), whole)
    assert [tuple(tensor.shape) for tensor in own] == [part.own_shape for part in parts((rows, width), number)]
    assert any(not tensor.numel() for tensor in own) == parts((rows, width), number)[0].is_empty_anywhere


@given(st.integers(1, 40), st.integers(1, 9))
def test_parts_are_those_of_torch(rows, number):
    """fully_shard cuts as `torch.chunk` does, with nothing for those that come off empty."""
    chunks = [len(chunk) for chunk in torch.arange(rows).chunk(number)]
    assert [part.own_shape[0] for part in parts((rows,), number)] == chunks + [0] * (number - len(chunks))


def stepped(weights):
    """An optimizer after two steps over these weights; the gradient of a number is the number."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weight.clone()) for weight in weights], lr=0.1)
    for _ in range(2):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = parameter.detach().clone()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("rank", "number"), [(0, 2), (1, 2), (2, 3)])
def test_state_of_rows_is_rows_of_the_state(rank, number):
    """An optimizer over rows goes on from the state that one process has saved, as the one over all goes on."""
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in SHAPES]
    rows = [Rows(shape, rank, number) for shape in SHAPES]
    whole = stepped(weights)
    own = torch.optim.AdamW([torch.nn.Parameter(r.own(w).clone()) for r, w in zip(rows, weights, strict=True)], lr=0.1)
    load_optimizer_state(own, own_optimizer_state(optimizer_state(whole), rows))
    of_rows = stepped([r.own(w) for r, w in zip(rows, weights, strict=True)])
    saved, expected = optimizer_state(own), optimizer_state(of_rows)
    assert saved["shapes"] == expected["shapes"] == [[list(r.own_shape) for r in rows]]
    torch.testing.assert_close(saved["tensors"], expected["tensors"], rtol=0, atol=0)


@pytest.fixture
def state_of_8_bits():
    """Of one process, over a weight of 4 blocks and one of 4 and a half."""
    weights = [torch.randn(size, generator=torch.Generator().manual_seed(3)) for size in ((64, 16), (36, 32))]
    groups = [{"params": [torch.nn.Parameter(weight) for weight in weights]}]
    optimizer = make_optimizer("AdamW8bit", groups, learning_rate=0.1, args=["min_8bit_size=1024"])
    for parameter in groups[0]["params"]:
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer_state(optimizer)


def tensors_of(state, weight):
    """{name: tensor} of what an optimizer keeps for a weight."""
    items = dict(state["state"][weight][1]["dict"])
    return {key: state["tensors"][item["tensor"]] for key, item in items.items() if isinstance(item, dict)}


def test_8_bits_are_cut_at_whole_blocks_and_are_float32_elsewhere(state_of_8_bits):
    rows = [Rows((64, 16), 1, 2), Rows((36, 32), 1, 2)]
    own = own_optimizer_state(state_of_8_bits, rows)
    before, kept = tensors_of(state_of_8_bits, 0), tensors_of(own, 0)
    assert torch.equal(kept["state1"], before["state1"][32:]) and kept["state1"].dtype == torch.uint8
    assert torch.equal(kept["absmax1"], before["absmax1"][2:])
    before, kept = tensors_of(state_of_8_bits, 1), tensors_of(own, 1)
    assert kept.keys() == {"state1", "state2"} and kept["state1"].dtype == torch.float32
    for number in "12":
        wide = dequantize_blockwise(
            before[f"state{number}"],
            absmax=before[f"absmax{number}"],
            code=before[f"qmap{number}"],
            blocksize=BLOCK,
        )
        assert wide.abs().max() > 0
        torch.testing.assert_close(kept[f"state{number}"], wide[18:], rtol=1e-6, atol=0)


def test_small_weights_keep_32_bits_where_parts_end_inside_a_block_and_large_ones_are_refused():
    optimizer = make_optimizer("AdamW8bit", [{"params": [torch.nn.Parameter(torch.empty(4))]}], learning_rate=0.1)
    keep_blocks_whole(optimizer, [Rows((24 * BLOCK, 3), 0, 2), Rows((9,), 0, 2)])
    assert optimizer.args.min_8bit_size == 4096
    keep_blocks_whole(optimizer, [Rows((14592,), 0, 2)])  # a bias of SD3.5-large
    assert optimizer.args.min_8bit_size == 7297
    with pytest.raises(OptionError, match="over 3 processes"):
        keep_blocks_whole(optimizer, [Rows((2432, 2432), 0, 3)])
    keep_blocks_whole(stepped([torch.ones(3)]), [Rows((2432, 2432), 0, 3)])


def test_averages_are_cut_like_their_weights():
    averages = {"updates": torch.tensor(3), **{f"average.{n}": torch.rand(shape) for n, shape in enumerate(SHAPES)}}
    rows = [Rows(shape, 1, 2) for shape in SHAPES]
    own = own_average_state(averages, rows)
    assert own.keys() == averages.keys() and own["updates"] == 3
    assert all(torch.equal(own[f"average.{n}"], r.own(averages[f"average.{n}"])) for n, r in enumerate(rows))


def test_units_are_the_blocks_of_a_model():
    config = MMDiTConfig(depth=3, num_heads=2, head_dim=8, context_dim=16, pooled_dim=8, position_side=8)
    with torch.device("meta"):
        model = MMDiT(config)
    assert list(blocks(model)) == list(model.joint_blocks)


def test_a_number_of_processes_that_does_not_fit_is_told_from_shapes():
    config = MMDiTConfig(depth=1, num_heads=38, head_dim=64, context_dim=4096, pooled_dim=2048, position_side=8)
    with torch.device("meta"):
        model = MMDiT(config)

    def check(optimizer, num_processes, trained=model):
        parameters = [torch.nn.Parameter(torch.zeros(1))]
        made = make_optimizer(optimizer, [{"params": parameters}], learning_rate=0.1)
        check_parts(model, list(trained.parameters()), made, num_processes)

    for number in (2, 4, 8):
        check("AdamW8bit", number)
    check("AdamW", 3)
    check("AdamW8bit", 3, model.final_layer.linear)
    with pytest.raises(OptionError, match="AdamW8bit cannot be sharded over 3 processes"):
        check("AdamW8bit", 3)
    with pytest.raises(OptionError, match="x_embedder.proj.weight has 2432 rows"):
        check("AdamW", 100)
