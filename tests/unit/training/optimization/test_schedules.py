"""Schedules: what is refused, shares of steps, and rates that optimizers set themselves."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from library.errors import OptionError
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.schedule_classes import end_epoch
from library.training.optimization.schedule_state import load_schedule_state, schedule_state
from library.training.optimization.schedules import (
    check_schedule,
    has_same_start,
    make_schedule,
    read_schedule,
    whole_steps,
)


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog(monkeypatch):
    """Also where an earlier test in this process has set up logging as the scripts do."""
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)


@dataclass(frozen=True)
class Options:
    lr_scheduler: str = "constant"
    lr_warmup_steps: int | float = 0
    learning_rate: float = 1e-3
    lr_decay_steps: int | float = 0
    lr_scheduler_num_cycles: int = 1
    lr_scheduler_power: float = 1
    lr_scheduler_timescale: int | None = None
    lr_scheduler_min_lr_ratio: float | None = None
    lr_scheduler_type: str = ""
    lr_scheduler_args: tuple[str, ...] | None = None


def sgd(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates], lr=1e-3)


@pytest.mark.parametrize(
    ("name", "warmup", "message"),
    [
        ("constant", 10, "constant_with_warmup"),
        ("piecewise_constant", 10, "--lr_warmup_steps"),
        ("cosin", 0, "Did you mean cosine?"),
        ("reduce_lr_on_plateau", 10, "--lr_warmup_steps 10"),
        ("linear", 1.5, "--lr_warmup_steps 1.5"),
        ("linear", -1, "--lr_warmup_steps -1"),
    ],
)
def test_what_cannot_work_is_refused_with_its_fix(name, warmup, message):
    with pytest.raises(OptionError, match=message):
        check_schedule(name, warmup, None)


@pytest.mark.parametrize(
    ("options", "is_same"),
    [
        (Options(), True),
        (Options(lr_scheduler="constant_with_warmup", lr_warmup_steps=3), True),
        (Options(lr_scheduler="constant_with_warmup", lr_warmup_steps=0.5), False),
        (Options(lr_scheduler="warmup_stable_decay", lr_decay_steps=2), True),  # of which nothing has fallen yet
        (Options(lr_scheduler="warmup_stable_decay", lr_decay_steps=6), False),
        (Options(lr_scheduler="reduce_lr_on_plateau"), True),
        (Options(lr_scheduler="adafactor:1e-3"), True),
        (Options(lr_scheduler="cosine"), False),
        (Options(lr_scheduler_type="StepLR", lr_scheduler_args=("step_size=1",)), False),
    ],
)
def test_a_schedule_has_or_has_not_the_same_start_in_a_longer_run(options, is_same):
    assert has_same_start(options, 6, before=8, now=20) == is_same


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine_with_min_lr", Options(), "--lr_scheduler_min_lr_ratio"),
        ("polynomial", Options(learning_rate=1e-8), "--learning_rate must be above"),
        ("piecewise_constant", Options(), "step_rules"),
        ("piecewise_constant", Options(lr_scheduler_args=("step_rules=1:a,2",)), "1:a,2"),
        ("cosine", Options(lr_scheduler_args=("T_max=3",)), "no argument T_max"),
        ("warmup_stable_decay", Options(lr_decay_steps=2.5), "--lr_decay_steps 2.5"),
        ("warmup_stable_decay", Options(lr_scheduler_args=("decay_type=sqrt",)), "linear, cosine, 1-sqrt, got 'sqrt'"),
        ("cosine_with_min_lr", Options(lr_scheduler_args=("min_lr=2e-3",)), "min_lr is a number from 0 to 0.001"),
        ("cosine_warmup_with_min_lr", Options(), "--lr_scheduler_min_lr_ratio"),
        ("reduce_lr_on_plateau", Options(lr_scheduler_args=("patiense=3",)), r"did you mean patience\?"),
        ("reduce_lr_on_plateau", Options(lr_scheduler_args=("factor=2",)), "factor=2"),
        ("constant", Options(lr_scheduler_type="StepLr", lr_scheduler_args=("gamma=0.5",)), "step_size"),
        ("constant", Options(lr_scheduler_type="StepLRR"), r"Did you mean StepLR\?"),
        ("constant", Options(lr_scheduler_type="no.such.Class"), "no.such.Class cannot be imported"),
        ("constant", Options(lr_scheduler_type="torch.optim.SGD"), "is not a schedule"),
        ("constant", Options(lr_scheduler_type="StepLR", lr_scheduler_args=("step_size=0",)), "cannot take a step"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(OptionError, match=message):
        check_schedule(name, 0, options.lr_scheduler_args, options=options)


def test_steps_and_shares():
    assert whole_steps(0, 100, "--x") == 0
    assert whole_steps(30, 100, "--x") == 30
    assert whole_steps(0.25, 101, "--x") == 25


def test_groups_keep_the_ratio_of_their_rates():
    optimizer = sgd(1e-3, 5e-4)
    schedule = make_schedule(optimizer, "linear", num_steps=10, warmup=2)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([5e-4, 2.5e-4])


def test_a_schedule_continues_from_its_state():
    optimizer = sgd(1e-3)
    schedule = make_schedule(optimizer, "cosine", num_steps=20, warmup=0.1)
    for _ in range(7):
        optimizer.step()
        schedule.step()
    other = sgd(1e-3)
    resumed = make_schedule(other, "cosine", num_steps=20, warmup=0.1)
    load_schedule_state(resumed, schedule_state(schedule), num_steps=7)
    other.step()
    resumed.step()
    optimizer.step()
    schedule.step()
    assert resumed.get_last_lr() == schedule.get_last_lr()


def test_too_long_warmup_and_idle_options_are_said(caplog):
    make_schedule(sgd(1e-3), "cosine", num_steps=5, warmup=9, options=Options(lr_scheduler_power=2))
    assert "only 5 steps" in caplog.text
    assert "does not use --lr_scheduler_power" in caplog.text


def test_factors_stay_finite_after_the_last_step():
    for name in ("linear", "cosine", "polynomial", "cosine_with_restarts"):
        schedule = read_schedule(name, num_steps=3, warmup=3)
        assert [schedule.factor(step) for step in range(4)][:3] == pytest.approx([0, 1 / 3, 2 / 3])
        assert 0 <= schedule.factor(50) <= 1


def test_adafactor_reports_its_own_rate(caplog):
    weights = torch.nn.Parameter(torch.full((4, 4), 2.0))
    optimizer = make_optimizer("Adafactor", [{"params": [weights], "lr": 1e-4}], learning_rate=1e-4)
    schedule = make_schedule(optimizer, "cosine", num_steps=10, warmup=3)
    assert "--lr_scheduler cosine has no effect" in caplog.text
    assert "--lr_warmup_steps has no effect" in caplog.text
    for _ in range(2):
        weights.grad = torch.ones(4, 4)
        optimizer.step()
        schedule.step()
    # 1 / sqrt(step) is above 1e-2 for the first 10,000 steps, so the rate is 1e-2 of the weights' size
    assert float(schedule.get_last_lr()[0]) == pytest.approx(0.02, rel=0.02)


def test_adafactor_reports_the_last_rate_of_a_group_that_trains_no_more():
    going, frozen = (torch.nn.Parameter(torch.full((4, 4), size)) for size in (2.0, 3.0))
    groups = [{"params": [torch.nn.Parameter(torch.ones(2)), going]}, {"params": [frozen]}]  # the first has no gradient
    optimizer = make_optimizer("Adafactor", groups, learning_rate=1e-4)
    schedule = make_schedule(optimizer, "adafactor", num_steps=10)
    for trained in ([going, frozen], [going]):
        frozen.grad = None
        for weights in trained:
            weights.grad = torch.ones(4, 4)
        optimizer.step()
        schedule.step()
    assert [float(rate) for rate in schedule.get_last_lr()] == pytest.approx([0.02, 0.03], rel=0.02)


def test_adafactor_schedule_reports_the_initial_rate_before_the_first_step():
    optimizer = make_optimizer("Adafactor", [{"params": [torch.nn.Parameter(torch.ones(2, 2))]}], learning_rate=1e-4)
    assert make_schedule(optimizer, "adafactor:0.0001", num_steps=10).get_last_lr() == [1e-4]


def test_adafactor_schedule_needs_the_optimizer():
    with pytest.raises(OptionError, match="--optimizer_type Adafactor"):
        make_schedule(sgd(1e-3), "adafactor", num_steps=10)


def rates(schedule, count):
    found = []
    for _ in range(count):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_shapes_of_warmup_and_decay_are_those_of_the_library(shape):
    from transformers import get_wsd_schedule

    given = Options(
        lr_decay_steps=5,
        lr_scheduler_min_lr_ratio=0.1,
        lr_scheduler_args=(f"warmup_type={shape}", f"decay_type={shape}"),
    )
    theirs = get_wsd_schedule(
        sgd(1e-3), 4, 5, num_training_steps=15, warmup_type=shape, decay_type=shape, min_lr_ratio=0.1
    )
    ours = make_schedule(sgd(1e-3), "warmup_stable_decay", num_steps=15, warmup=4, options=given)
    assert rates(ours, 18) == pytest.approx(rates(theirs, 18), rel=1e-9)


@pytest.mark.parametrize("start", [None, 0.05])
def test_cosine_warmup_with_min_lr_is_the_library_s_up_to_the_last_step(start):
    get = pytest.importorskip("transformers.optimization").get_cosine_with_min_lr_schedule_with_warmup_lr_rate
    args = ("min_lr=1e-4",) if start is None else ("min_lr=1e-4", f"warmup_lr_rate={start}")
    theirs = get(sgd(1e-3), 4, 15, min_lr=1e-4, warmup_lr_rate=start)
    given = Options(lr_scheduler_args=args)
    ours = make_schedule(sgd(1e-3), "cosine_warmup_with_min_lr", num_steps=15, warmup=4, options=given)
    assert rates(ours, 15) == pytest.approx(rates(theirs, 15), rel=1e-9)
    assert rates(ours, 5) == pytest.approx([1e-4] * 5)


def test_lowest_rate_can_be_given_as_a_rate():
    as_rate = Options(lr_scheduler_args=("min_lr=1e-4",))
    check_schedule("cosine_with_min_lr", 0, as_rate.lr_scheduler_args, options=as_rate)
    schedules = [
        make_schedule(sgd(1e-3), "cosine_with_min_lr", num_steps=9, options=options)
        for options in (as_rate, Options(lr_scheduler_min_lr_ratio=0.1))
    ]
    assert rates(schedules[0], 10) == pytest.approx(rates(schedules[1], 10), rel=1e-12)


def test_a_class_goes_before_the_name_and_says_what_it_does_not_use(caplog):
    given = Options(lr_scheduler_type="steplr", lr_scheduler_args=("step_size=2", "gamma=0.1"), lr_scheduler_power=2)
    schedule = make_schedule(sgd(1.0), "cosine", num_steps=6, options=given)
    assert rates(schedule, 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert "does not use --lr_scheduler cosine, --lr_scheduler_power" in caplog.text


def test_a_class_of_any_module_works():
    given = Options(lr_scheduler_type="torch.optim.lr_scheduler.ExponentialLR", lr_scheduler_args=("gamma=0.5",))
    check_schedule("constant", 0, given.lr_scheduler_args, options=given)
    assert rates(make_schedule(sgd(1.0), "constant", num_steps=3, options=given), 3) == [1, 0.5, 0.25]


class CountingSchedule(torch.optim.lr_scheduler.LRScheduler):
    """One whose state is no plain value."""

    def __init__(self, optimizer, last_epoch=-1):
        self.number = np.float64(1.0)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return list(self.base_lrs)


def test_a_class_whose_state_cannot_be_read_again_is_refused():
    given = Options(lr_scheduler_type=f"{__name__}.CountingSchedule")
    with pytest.raises(OptionError, match=r"\.CountingSchedule: its state cannot be saved and read again"):
        check_schedule("constant", 0, None, options=given)


def test_a_class_has_no_warmup():
    given = Options(lr_scheduler_type="StepLR", lr_scheduler_args=("step_size=2",))
    with pytest.raises(OptionError, match="StepLR cannot have --lr_warmup_steps 5"):
        check_schedule("constant", 5, given.lr_scheduler_args, options=given)


@pytest.mark.parametrize(("name", "kind"), [("reduce_lr_on_plateau", ""), ("constant", "ReduceLROnPlateau")])
def test_a_plateau_lowers_the_rate_when_epochs_stop_getting_better(name, kind):
    given = Options(lr_scheduler_type=kind, lr_scheduler_args=("patience=0", "factor=0.5"))
    check_schedule(name, 0, given.lr_scheduler_args, options=given)
    schedule = make_schedule(sgd(1.0), name, num_steps=9, options=given)
    seen = []
    for loss in (3.0, 2.0, 2.0, 1.0):
        seen += rates(schedule, 2)
        end_epoch(schedule, loss)
    assert seen == [1, 1, 1, 1, 1, 1, 0.5, 0.5]


def test_other_schedules_do_not_care_for_the_loss():
    schedule = make_schedule(sgd(1.0), "linear", num_steps=10)
    end_epoch(schedule, 99.0)
    assert schedule.get_last_lr() == [1.0]


def test_schedule_free_optimizers_have_none(caplog):
    pytest.importorskip("schedulefree")
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = make_optimizer("AdamWScheduleFree", [{"params": [weights]}], learning_rate=1e-3)
    assert rates(make_schedule(optimizer, "constant", num_steps=3), 3) == [1e-3] * 3
    assert not caplog.text
    assert rates(make_schedule(optimizer, "cosine", num_steps=3, warmup=2), 3) == [1e-3] * 3
    assert "--lr_scheduler cosine and --lr_warmup_steps 2: no effect" in caplog.text
    assert len(caplog.records) == 1
