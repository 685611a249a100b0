"""Plans of block swap: every block is there when it is used, and no buffer is taken from a block in use."""

from hypothesis import given
from hypothesis import strategies as st

from library.memory.swap_plan import swap_plan

PLANS = st.builds(swap_plan, st.integers(1, 60), st.integers(0, 80), st.integers(0, 5))


@given(PLANS)
def test_blocks_are_distinct_in_the_order_of_the_model_and_spread_evenly(plan):
    assert list(plan.swapped) == sorted(set(plan.swapped))
    assert all(0 <= index < plan.depth for index in plan.swapped)
    gaps = [after - before for before, after in zip(plan.swapped, plan.swapped[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(1, 60), st.integers(0, 80))
def test_as_many_are_swapped_as_are_asked_for_and_above_the_depth_all(depth, number):
    assert len(swap_plan(depth, number).swapped) == min(depth, number)


@given(PLANS, st.lists(st.sampled_from(["train", "infer"]), min_size=1, max_size=4))
def test_what_is_fetched_ahead_is_there_when_its_turn_comes_and_takes_no_buffer_in_use(plan, passes):
    """As the swapper acts: a block in use is fetched if it is not there, then those ahead of it."""
    number = len(plan.swapped)
    there: dict[int, int] = {}
    late = 0
    for kind in passes:
        turns = [(position, False) for position in range(number)]
        if kind == "train":
            turns += [(position, True) for position in reversed(range(number))]
        for position, is_backward in turns:
            late += there.get(plan.buffer(position)) != position
            there[plan.buffer(position)] = position
            for other in plan.ahead(position, is_backward=is_backward, is_repeated=kind == "infer"):
                assert plan.buffer(other) != plan.buffer(position)
                there[plan.buffer(other)] = other
            assert there[plan.buffer(position)] == position
            assert len(there) <= plan.num_buffers
    if plan.prefetch and number:
        # only where a pass begins with a block whose buffer the last one of the pass before has
        assert late <= len(passes)


@given(PLANS)
def test_neighbours_have_different_buffers_where_there_are_two(plan):
    if plan.num_buffers > 1:
        assert all(plan.buffer(n) != plan.buffer(n + 1) for n in range(len(plan.swapped) - 1))
