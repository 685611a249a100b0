"""One number says where a run stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.data.plan.batches import StepCount
from library.training.course import Course, epochs_between_saves


def course(batches=7, accumulation=2, steps=10):
    per_epoch = -(-batches // accumulation)
    return Course(
        StepCount(
            images=batches,
            repeats=1,
            samples=batches,
            batch_sizes=(1,),
            accumulation=accumulation,
            num_processes=1,
            batches_per_epoch=batches,
            batches_per_process=batches,
            steps_per_epoch=per_epoch,
            epochs=-(-steps // per_epoch),
            max_steps=steps,
        )
    )


@given(batches=st.integers(1, 40), accumulation=st.integers(1, 9), steps=st.integers(1, 200))
def test_steps_use_every_batch_of_every_epoch_once(batches, accumulation, steps):
    run = course(batches, accumulation, steps)
    used = {}
    for step in range(1, steps + 1):
        epoch = run.epoch(step)
        assert used.get(epoch, 0) == run.batches_done(step - 1)
        used[epoch] = used.get(epoch, 0) + run.num_batches(step)
        assert 1 <= run.num_batches(step) <= accumulation
    assert list(used) == list(range(1, run.steps.epochs + 1))
    assert all(number == batches for epoch, number in used.items() if epoch < run.steps.epochs)


@given(batches=st.integers(1, 40), accumulation=st.integers(1, 9), steps=st.integers(1, 200))
def test_every_epoch_ends_once_and_the_last_step_ends_one(batches, accumulation, steps):
    run = course(batches, accumulation, steps)
    ended = [run.ended_epoch(step) for step in range(1, steps + 1)]
    assert [epoch for epoch in ended if epoch] == list(range(1, run.steps.epochs + 1)) and ended[-1] == run.steps.epochs


def test_the_last_epoch_has_the_final_file_and_no_own():
    run = course(batches=4, accumulation=1, steps=12)
    assert [run.epoch_to_save(step, 1) for step in (4, 8, 12)] == [1, 2, None]
    assert [run.epoch_to_save(step, 2) for step in (4, 8, 12)] == [None, 2, None]
    assert not any(run.epoch_to_save(step, None) for step in range(1, 13))


def test_an_epoch_that_is_cut_short_is_the_last():
    run = course(batches=4, accumulation=1, steps=10)
    assert run.ended_epoch(10) == 3 and run.epoch_to_save(10, 1) is None
    assert run.epochs_done(10) == 2


def test_saves_are_due_at_multiples():
    assert [step for step in range(1, 10) if course().is_save_due(step, 3)] == [3, 6, 9]
    assert not any(course().is_save_due(step, None) for step in range(1, 10))


@pytest.mark.parametrize(("every", "ratio", "epochs", "wanted"), [(2, None, 9, 2), (2, 4, 10, 2), (None, 3, 10, 3)])
def test_a_ratio_goes_before_a_number_of_epochs(every, ratio, epochs, wanted):
    assert epochs_between_saves(every, ratio, epochs) == wanted


def test_a_ratio_above_the_epochs_saves_after_each():
    assert epochs_between_saves(None, 50, 10) == 1
