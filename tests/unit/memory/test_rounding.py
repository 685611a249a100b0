"""Rounding to bf16: at random it is right on average, and with a rest nothing is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from library.memory.rounding import round_stochastically, round_with_rest


def rounded(values, seed=0):
    target = torch.empty(values.shape, dtype=torch.bfloat16)
    round_stochastically(target, values.clone(), torch.Generator().manual_seed(seed))
    return target


def test_the_mean_of_many_is_the_value():
    values = torch.full((200_000,), 1.0 + 0.3 * 2**-7)
    result = rounded(values).double()
    assert set(result.tolist()) == {1.0, 1.0 + 2**-7}
    assert result.mean().item() == pytest.approx(1.0 + 0.3 * 2**-7, abs=2**-7 * 0.005)


@settings(max_examples=30)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), st.integers(0, 2**31))
def test_a_value_becomes_one_of_its_two_neighbours(numbers, seed):
    values = torch.tensor(numbers)
    result = rounded(values, seed).float()
    bits = values.view(torch.int32)
    below = (bits & -65536).view(torch.float32)
    above = ((bits & -65536) + 65536).view(torch.float32)
    assert ((result == below) | (result == above)).all()


def test_what_bf16_can_say_is_not_changed():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(rounded(values.float()), values)


def test_what_is_no_number_stays_so():
    gpu_nan = torch.tensor([2**31 - 1], dtype=torch.int32).view(torch.float32).item()
    for seed in range(20):
        result = rounded(torch.tensor([float("inf"), -float("inf"), float("nan"), gpu_nan]), seed)
        assert result[:2].tolist() == [float("inf"), -float("inf")]
        assert result[2:].isnan().all()


def test_the_same_seed_rounds_the_same():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rounded(values, 3), rounded(values, 3))
    assert not torch.equal(rounded(values, 3), rounded(values, 4))


def test_number_and_rest_together_keep_sixteen_bits():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    number, rest = torch.zeros(2, 1000, dtype=torch.bfloat16)
    round_with_rest(number, rest, values.clone())
    assert torch.equal(number, values.bfloat16())
    error = (number.double() + rest.double() - values.double()).abs() / values.double().abs()
    assert error.max() < 2**-16


def test_sums_that_keep_a_rest_reach_their_end():
    number, rest = torch.ones(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(1000):
        round_with_rest(number, rest, number.float().add_(rest).add_(1e-3))
    assert number.item() == pytest.approx(2.0, rel=0.02)


def test_infinity_leaves_no_rest():
    number, rest = torch.zeros(2, 1, dtype=torch.bfloat16)
    round_with_rest(number, rest, torch.tensor([float("inf")]))
    assert number.isinf().all() and rest.item() == 0
