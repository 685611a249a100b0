import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.loras.low_rank import chosen_rank, factors_of, svd_of_matrix, svd_of_product

SIZES = st.integers(1, 12)


def product(seed, rank, out, inner):
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inner, generator=draw, dtype=torch.float64)
    return down, torch.randn(out, rank, generator=draw, dtype=torch.float64)


def values(seed, number):
    drawn = torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.sort(descending=True).values + 0.01


@given(st.integers(0, 999), SIZES, SIZES, SIZES)
def test_singular_values_are_those_of_the_whole_matrix(seed, rank, out, inner):
    down, up = product(seed, rank, out, inner)
    u, s, vh = svd_of_product(down, up)
    assert len(s) == min(rank, out, inner)
    torch.testing.assert_close(s, torch.linalg.svdvals(up @ down)[: len(s)], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close((u * s) @ vh, up @ down, atol=1e-10, rtol=1e-9)


@given(st.integers(0, 999), SIZES, SIZES)
def test_whole_matrices_of_any_shape_are_decomposed(seed, out, inner):
    matrix = product(seed, inner, out, inner)[1]
    u, s, vh = svd_of_matrix(matrix)
    assert u.shape == (out, len(s)) and vh.shape == (len(s), inner)
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close((u * s) @ vh, matrix, atol=1e-10, rtol=1e-9)


@given(st.integers(0, 999), SIZES, SIZES, SIZES, st.integers(1, 12))
def test_factors_are_the_best_approximation_and_of_one_norm(seed, rank, out, inner, kept):
    down, up = product(seed, rank, out, inner)
    singular = svd_of_product(down, up)
    kept = min(kept, len(singular.s))
    new_down, new_up = factors_of(*singular, kept)
    lost = torch.linalg.matrix_norm(up @ down - new_up @ new_down)
    rest = torch.linalg.vector_norm(torch.linalg.svdvals(up @ down)[kept:])
    assert float(lost) == pytest.approx(float(rest), abs=1e-9)
    assert float(new_down.norm()) == pytest.approx(float(new_up.norm()), rel=1e-9)


def test_a_convolution_is_a_matrix_of_all_its_pixels():
    down, up = torch.randn(3, 4, 3, 3), torch.randn(8, 3, 1, 1)
    u, s, vh = svd_of_product(down, up)
    whole = torch.nn.functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)  # [8, 4, 3, 3]
    torch.testing.assert_close((u * s) @ vh, whole.flatten(1).double(), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 999), SIZES, st.floats(1, 200))
def test_a_ratio_keeps_what_is_above_the_greatest_by_it(seed, number, param):
    s = values(seed, number)
    expected = max(1, sum(float(value) * param > float(s[0]) for value in s))
    assert chosen_rank(s, rank=99, method="sv_ratio", param=param) == expected


@pytest.mark.parametrize(("method", "power"), [("sv_cumulative", 1), ("sv_fro", 2)])
@given(seed=st.integers(0, 999), number=SIZES, param=st.floats(0.01, 0.99))
def test_a_share_keeps_the_fewest_that_reach_it(method, power, seed, number, param):
    s = values(seed, number)
    kept = chosen_rank(s, rank=99, method=method, param=param)
    weights = s**power

    def share(rank):
        return float(weights[:rank].sum() / weights.sum()) ** (1 / power)

    assert share(kept) >= param - 1e-6
    assert kept == 1 or share(kept - 1) < param


@pytest.mark.parametrize("method", ["sv_cumulative", "sv_fro"])
def test_the_whole_share_keeps_all(method):
    assert chosen_rank(torch.tensor([3.0, 2.0, 1.0]), rank=9, method=method, param=1.0) == 3


@pytest.mark.parametrize("method", ["sv_ratio", "sv_cumulative", "sv_fro"])
def test_what_is_zero_has_rank_one(method):
    assert chosen_rank(torch.zeros(4), rank=4, method=method, param=0.9) == 1


def test_the_rank_is_a_ceiling_and_none_grows():
    s = torch.ones(5)
    assert chosen_rank(s, rank=2, method="sv_fro", param=1.0) == 2
    assert chosen_rank(s, rank=9) == 5
