"""Reports of steps come in order and one step late."""

import math

import pytest
import torch

from library.training.stepping.step_log import Sample, StepLog

SAMPLES = (Sample(0, "a#0", 500.0), Sample(1, "b#0", 20.0))


def values(loss=1.0, norm=0.5, skipped=0, stop=0, failed=0, losses=(1.5, 0.5)):
    return torch.tensor([loss, norm, skipped, stop, failed, *losses], dtype=torch.float32)


def test_a_report_comes_with_the_next_step_and_the_last_one_on_demand():
    log = StepLog()
    assert log.push(1, SAMPLES, values(3.0)) is None and log.losses == []
    first = log.push(2, SAMPLES, values(1.0))
    assert (first.step, first.loss, first.grad_norm, first.losses) == (1, 3.0, 0.5, (1.5, 0.5))
    assert log.losses == [3.0]
    assert log.flush().step == 2 and log.losses == [3.0, 1.0]
    assert log.flush() is None and log.losses == [3.0, 1.0]


def test_a_step_that_was_skipped_has_no_loss_and_does_not_count_in_means():
    log = StepLog()
    for step, (loss, skipped) in enumerate([(8.0, 0), (1.0, 0), (5.0, 1), (3.0, 0)], start=1):
        log.push(step, SAMPLES, values(loss, skipped=skipped))
    report = log.flush()
    assert report.loss == 3.0 and math.isnan(log.losses[2])
    assert log.mean_of_last(3) == 2.0 and log.mean_of_last(50) == 4.0


def test_there_is_no_mean_before_the_first_loss():
    assert StepLog().mean_of_last(3) is None
    assert StepLog([math.nan]).mean_of_last(3) is None


def test_a_run_that_goes_on_knows_earlier_losses():
    log = StepLog([1.0, 3.0])
    log.push(3, SAMPLES, values(5.0))
    log.flush()
    assert log.mean_of_last(2) == 4.0


@pytest.mark.parametrize(
    ("losses", "wanted"), [((math.nan, 0.5), ["a#0"]), ((math.inf, math.nan), ["a#0", "b#0"]), ((1, 1), [])]
)
def test_broken_samples_are_those_without_finite_loss(losses, wanted):
    log = StepLog()
    log.push(1, SAMPLES, values(math.nan, skipped=1, losses=losses))
    assert [sample.name for sample in log.flush().broken] == wanted


def test_a_step_that_is_discarded_is_never_read():
    log = StepLog()
    log.push(1, SAMPLES, values(1.0))
    log.discard()
    assert log.flush() is None and log.losses == []


def test_flags_of_other_processes_arrive():
    log = StepLog()
    log.push(1, (), values(stop=0.5, failed=0.25, losses=()))
    report = log.flush()
    assert report.is_stop_asked and report.has_failed and report.samples == ()
