"""Draws depend on their keys and on nothing else."""

import subprocess
import sys
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from library.rng import normal_per_sample, python_stream, stream_seed, torch_stream, uniform_per_sample

ROOT = Path(__file__).resolve().parents[2]
KEYS = st.lists(st.one_of(st.integers(), st.text(st.characters(codec="utf-8", exclude_characters="\x1f"))), max_size=3)


@given(st.integers(), KEYS, KEYS)
def test_other_keys_give_another_seed(seed, first, second):
    one, other = stream_seed(seed, "noise", *first), stream_seed(seed, "noise", *second)
    assert 0 <= one < 2**63
    assert (one == other) == (first == second)


def test_type_order_and_grouping_of_keys_count():
    seeds = {
        stream_seed(0, "a", 1),
        stream_seed(0, "a", "1"),
        stream_seed(1, "a", 0),
        stream_seed(0, "b", 1),
        stream_seed(0, "a", 1, 2),
        stream_seed(0, "a", 2, 1),
        stream_seed(0, "a", 12),
        stream_seed(0, "a", "x", "y"),
        stream_seed(0, "a", "xy"),
    }
    assert len(seeds) == 9


def test_seeds_are_the_same_in_every_process():
    code = "from library.rng import stream_seed; print(stream_seed(7, 'noise', 3, 'ü/a.png#0'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == stream_seed(7, "noise", 3, "ü/a.png#0") == 7870125321179114598


def test_draws_of_a_sample_do_not_depend_on_its_batch():
    for draw in (normal_per_sample, uniform_per_sample):
        together = draw([5, 6, 7], (4, 3))
        assert together.shape == (3, 4, 3)
        assert together.dtype == torch.float32
        assert torch.equal(together[1:2], draw([6], (4, 3)))
        assert not torch.equal(together[0], together[1])


def test_draws_leave_the_global_generators_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    normal_per_sample([1, 2], (3,))
    uniform_per_sample([1])
    torch_stream(0, "x").initial_seed()
    assert torch.equal(before, torch.get_rng_state())


def test_distributions():
    normal = normal_per_sample(range(2000), (4,))
    uniform = uniform_per_sample(range(2000))
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert uniform.shape == (2000,)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02


def test_streams_are_generators_of_their_seed():
    assert python_stream(1, "caption", 2).random() == python_stream(1, "caption", 2).random()
    assert python_stream(1, "caption", 2).random() != python_stream(1, "caption", 3).random()
    first, second = (torch.rand(3, generator=torch_stream(1, "drop", "a")) for _ in range(2))
    assert torch.equal(first, second)


def test_names_that_are_no_utf8_have_seeds_of_their_own():
    names = [b"caf\xe9.png".decode("utf-8", "surrogateescape"), b"caf\xe8.png".decode("utf-8", "surrogateescape")]
    assert len({stream_seed(0, "flip", name) for name in (*names, "caf\u00e9.png")}) == 3
