import pytest
import torch

from library.loras.extracting import clamp, clamped_share, extract, is_same


def low_rank(*shape, rank=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.zeros(shape).flatten(1)
    up, down = torch.randn(len(matrix), rank, generator=draw), torch.randn(rank, matrix.shape[1], generator=draw)
    return (up @ down).reshape(shape)


def product(module):
    return (module.pair.up.flatten(1) @ module.pair.down.flatten(1)) * module.pair.scale


@pytest.mark.parametrize("shape", [(9, 7), (8, 5, 3, 3), (8, 6, 1, 1)])
def test_a_difference_of_low_rank_is_held_exactly(shape):
    delta = low_rank(*shape)
    module = extract("m", delta, 2)
    assert module.pair.down.shape == (2, *shape[1:]) and module.pair.up.shape == (shape[0], 2, *[1] * (len(shape) - 2))
    torch.testing.assert_close(product(module).reshape(shape), delta, atol=1e-5, rtol=1e-5)
    assert module.retained.norm_share == pytest.approx(1, abs=1e-6)
    assert module.clamped == 0


def test_no_rank_is_above_that_of_the_matrix():
    assert extract("m", torch.randn(3, 8), 64).pair.down.shape[0] == 3


def test_the_retained_norm_is_that_of_what_is_kept():
    delta = low_rank(12, 10, rank=5)
    module = extract("m", delta, 3)
    assert module.retained.norm == pytest.approx(float(product(module).norm()), rel=1e-5)
    assert module.retained.whole_norm == pytest.approx(float(delta.norm()), rel=1e-5)


def test_clamping_cuts_the_share_of_the_largest_numbers():
    down, up = torch.randn(4, 50), torch.randn(50, 4)
    small_down, small_up = clamp(down, up, 0.9)
    limit = max(small_down.abs().max(), small_up.abs().max())
    sizes = torch.cat([down.flatten(), up.flatten()]).abs()
    assert float((sizes > limit).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert torch.equal(small_down[down.abs() <= limit], down[down.abs() <= limit])


def test_clamping_does_not_ask_for_signs():
    down, up = torch.rand(2, 9) + 0.1, torch.rand(8, 2) + 0.1
    one, other = clamp(down, up, 0.5), clamp(-down, -up, 0.5)
    torch.testing.assert_close(one[1] @ one[0], other[1] @ other[0])


def test_what_clamping_changes_is_counted():
    delta = low_rank(20, 30, rank=4)
    whole, cut = extract("m", delta, 4), extract("m", delta, 4, quantile=0.8)
    expected = float((product(whole) - product(cut)).norm())
    assert cut.clamped == pytest.approx(expected, rel=1e-4)
    assert clamped_share({"m": cut}) == pytest.approx(expected / float(delta.norm()), rel=1e-4)


FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("size", [100.0, 1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("one", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_rounding_to_two_formats_is_no_difference(one, other, size):
    weights = torch.randn(5000) * size
    weights[:9] = 0
    assert is_same(weights.to(one), weights.to(other))
    assert not is_same(weights.to(one), (weights * 1.1).to(other))


def test_one_step_of_the_same_format_is_a_difference():
    weights = torch.randn(40).bfloat16()
    tuned = weights.clone()
    tuned[0] += tuned[0].abs() * torch.finfo(torch.bfloat16).eps
    assert not is_same(weights, tuned) and is_same(weights, weights.clone())
