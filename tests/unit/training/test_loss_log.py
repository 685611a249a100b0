"""Losses are read one step late."""

import pytest
import torch

from library.training.loss_log import LossLog


def test_values_come_in_order_and_one_step_late():
    log, seen = LossLog(), []
    for loss in (3.0, 1.0, 2.0):
        log.push(torch.tensor(loss))
        seen.append(list(log.values))
    assert seen == [[], [3.0], [3.0, 1.0]]
    log.flush()
    assert log.values == [3.0, 1.0, 2.0]


def test_flush_adds_nothing_twice():
    log = LossLog()
    log.flush()
    log.push(torch.tensor(1.5))
    for _ in range(3):
        log.flush()
    assert log.values == [1.5]
    log.push(torch.tensor(2.5))
    assert log.values == [1.5]


def test_mean_is_of_the_last_known_losses():
    log = LossLog()
    assert log.mean_of_last(2) is None
    for loss in (8.0, 1.0, 2.0, 100.0):
        log.push(torch.tensor(loss))
    assert log.mean_of_last(2) == 1.5
    assert log.mean_of_last(50) == pytest.approx(11 / 3)
