"""A run that goes on with other options trains with them, and with all that it had found until then."""

import io
from types import SimpleNamespace

import pytest
import torch

from library.errors import CheckpointError
from library.training.optimization.optimizer_state import load_optimizer_state, optimizer_state
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.schedule_classes import end_epoch
from library.training.optimization.schedule_state import advance, load_schedule_state, schedule_state
from library.training.optimization.schedules import make_schedule

NUM_STEPS = 10


class Run:
    """An optimizer over two groups, with a schedule."""

    def __init__(self, optimizer="AdamW", rates=(1e-3, 5e-4), args=None, *, schedule="linear", steps=NUM_STEPS, **kind):
        torch.manual_seed(0)
        self.weights = [torch.nn.Parameter(torch.randn(3, 3)) for _ in rates]
        groups = [{"params": [weight], "lr": rate} for weight, rate in zip(self.weights, rates, strict=True)]
        self.optimizer = make_optimizer(optimizer, groups, learning_rate=rates[0], args=args)
        options = SimpleNamespace(
            learning_rate=rates[0],
            lr_decay_steps=0,
            lr_scheduler_num_cycles=1,
            lr_scheduler_power=1,
            lr_scheduler_timescale=None,
            lr_scheduler_min_lr_ratio=None,
            lr_scheduler_type=kind.get("kind", ""),
            lr_scheduler_args=kind.get("schedule_args"),
        )
        self.schedule = make_schedule(self.optimizer, schedule, num_steps=steps, options=options)

    def train(self, num_steps):
        for step in range(num_steps):
            for weight in self.weights:
                weight.grad = torch.full_like(weight, 0.1 * (step + 1))
            self.optimizer.step()
            self.schedule.step()
        return self

    def go_on_from(self, other, num_steps):
        written = io.BytesIO()
        torch.save([optimizer_state(other.optimizer), schedule_state(other.schedule)], written)
        written.seek(0)
        optimizer, schedule = torch.load(written, weights_only=True)
        load_optimizer_state(self.optimizer, optimizer)
        load_schedule_state(self.schedule, schedule, num_steps=num_steps)
        return self

    def value(self, key):
        return [group[key] for group in self.optimizer.param_groups]


def test_other_rates_count_at_the_place_of_the_schedule():
    run = Run(rates=(2e-3, 7e-4)).go_on_from(Run().train(4), 4)
    assert run.value("lr") == pytest.approx([2e-3 * 0.6, 7e-4 * 0.6])
    assert run.train(1).value("lr") == pytest.approx([2e-3 * 0.5, 7e-4 * 0.5])
    assert run.schedule.get_last_lr() == run.value("lr")


def test_one_other_rate_leaves_the_others():
    run = Run(rates=(1e-3, 9e-4)).go_on_from(Run().train(4), 4)
    assert run.value("lr") == pytest.approx([6e-4, 9e-4 * 0.6])


def test_what_the_optimizer_has_gathered_is_kept_with_other_options():
    before = Run().train(4)
    run = Run(rates=(2e-3, 7e-4), args=["weight_decay=0.3", "betas=0.8,0.9"]).go_on_from(before, 4)
    assert run.value("weight_decay") == [0.3, 0.3] and run.value("betas") == [(0.8, 0.9)] * 2
    for weight, old in zip(run.weights, before.weights, strict=True):
        assert run.optimizer.state[weight]["step"] == 4
        assert torch.equal(run.optimizer.state[weight]["exp_avg"], before.optimizer.state[old]["exp_avg"])


def test_a_later_state_keeps_the_changed_options():
    changed = {"rates": (2e-3, 7e-4), "args": ["weight_decay=0.3"]}
    second = Run(**changed).go_on_from(Run().train(2), 2).train(2)
    third = Run(**changed).go_on_from(second, 4)
    assert third.value("lr") == second.value("lr") and third.value("weight_decay") == [0.3, 0.3]


def test_going_back_in_the_same_run_to_a_state_with_other_options_keeps_those_of_the_run():
    old = Run().train(4)
    run = Run(rates=(2e-3, 7e-4), args=["weight_decay=0.3"]).go_on_from(old, 4).train(3).go_on_from(old, 4)
    assert run.value("lr") == pytest.approx([2e-3 * 0.6, 7e-4 * 0.6]) and run.value("weight_decay") == [0.3, 0.3]


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam"])
def test_a_size_that_was_found_is_kept_with_another_rate_and_another_first_size(name):
    pytest.importorskip({"Prodigy": "prodigyopt"}.get(name, "dadaptation"))
    before = Run(name, (1.0, 1.0), ["d0=0.01"], schedule="constant").train(5)
    run = Run(name, (0.5, 0.5), ["d0=0.02"], schedule="constant").go_on_from(before, 5)
    assert run.value("lr") == [0.5, 0.5]
    assert run.value("d") == before.value("d") and run.value("k") == before.value("k") == [5, 5]


def test_a_warmup_of_its_own_goes_on_with_another_rate():
    pytest.importorskip("schedulefree")
    before = Run("AdamWScheduleFree", args=["warmup_steps=8"], schedule="constant").train(3)
    run = Run("AdamWScheduleFree", (2e-3, 1e-3), args=["warmup_steps=8"], schedule="constant").go_on_from(before, 3)
    assert run.value("k") == [3, 3] and run.value("weight_sum") == before.value("weight_sum")
    assert run.train(1).value("scheduled_lr") == pytest.approx([2e-3 * 4 / 8, 1e-3 * 4 / 8])


def test_an_argument_that_the_class_keeps_as_an_attribute_counts():
    pytest.importorskip("pytorch_optimizer")
    before = Run("pytorch_optimizer.StableAdamW").train(1)
    assert Run("pytorch_optimizer.StableAdamW", args=["maximize=True"]).go_on_from(before, 1).optimizer.maximize is True


@pytest.mark.parametrize(
    ("name", "before", "now"), [("AdamW", None, ["amsgrad=True"]), ("RMSprop", ["momentum=0.9"], ["momentum=0"])]
)
def test_an_argument_that_needs_another_state_is_refused_and_changes_nothing(name, before, now):
    run = Run(name, args=now)
    with pytest.raises(CheckpointError, match=f"--optimizer_args {now[0].partition('=')[0]}="):
        run.go_on_from(Run(name, args=before).train(2), 2)
    assert not run.optimizer.state
    assert Run("SGD", args=["momentum=0.9"]).go_on_from(Run("SGD", args=["momentum=0.5"]).train(2), 2).train(1)


def test_another_schedule_begins_at_the_place_of_the_former_one():
    run = Run(schedule="cosine").go_on_from(Run(schedule="linear").train(5), 5)
    assert run.value("lr") == pytest.approx([5e-4, 2.5e-4])
    run = Run(kind="StepLR", schedule_args=["step_size=2", "gamma=0.5"]).go_on_from(Run().train(5), 5)
    assert run.value("lr") == pytest.approx([2.5e-4, 1.25e-4])
    assert run.train(1).value("lr") == pytest.approx([1.25e-4, 6.25e-5])
    run = Run().go_on_from(Run(kind="StepLR", schedule_args=["step_size=2"]).train(5), 5)
    assert run.value("lr") == pytest.approx([5e-4, 2.5e-4])


def test_other_arguments_of_a_schedule_count_as_if_it_had_always_had_them():
    before = Run(kind="StepLR", schedule_args=["step_size=2", "gamma=0.5"]).train(5)
    run = Run(kind="StepLR", schedule_args=["step_size=3", "gamma=0.1"]).go_on_from(before, 5)
    assert run.value("lr") == pytest.approx([1e-4, 5e-5])
    run = Run(rates=(1.0, 2.0), kind="StepLR", schedule_args=["step_size=2", "gamma=0.5"]).go_on_from(before, 5)
    assert run.value("lr") == pytest.approx([0.25, 0.5])


def test_another_length_of_the_run_stretches_the_schedule():
    assert Run(steps=20).go_on_from(Run().train(5), 5).value("lr") == pytest.approx([7.5e-4, 3.75e-4])


def test_a_schedule_with_momentum_of_its_own_goes_on_with_it():
    args = ["max_lr=0.1", "total_steps=10"]
    before = Run(kind="OneCycleLR", schedule_args=args).train(4)
    run = Run(args=["weight_decay=0.3"], kind="OneCycleLR", schedule_args=args).go_on_from(before, 4)
    assert run.value("betas") == before.value("betas") and run.value("lr") == before.value("lr")
    run = Run(rates=(2e-3, 2e-3), kind="OneCycleLR", schedule_args=args).go_on_from(before, 4)
    assert run.value("lr") == before.value("lr")  # the class makes the whole course of the rate


def plateau(rates=(1e-3, 5e-4), **changes):
    return Run(rates=rates, schedule="reduce_lr_on_plateau", schedule_args=["patience=0", "factor=0.5"], **changes)


def test_a_rate_that_was_lowered_stays_lowered_as_far_with_another_rate():
    before = plateau()
    for loss in (1.0, 2.0, 2.0):
        before.train(2)
        end_epoch(before.schedule, loss)
    assert plateau().go_on_from(before, 6).value("lr") == before.value("lr") == pytest.approx([2.5e-4, 1.25e-4])
    run = plateau((4e-3, 8e-3)).go_on_from(before, 6)
    assert run.value("lr") == pytest.approx([1e-3, 2e-3])
    end_epoch(run.schedule, 1.5)  # no better than the best before
    assert run.value("lr") == pytest.approx([5e-4, 1e-3])
    assert plateau().go_on_from(Run().train(5), 5).value("lr") == [1e-3, 5e-4]


def test_a_schedule_is_put_forward_without_a_warning(recwarn):
    run = Run()
    advance(run.schedule, 5)
    assert run.value("lr") == pytest.approx([5e-4, 2.5e-4]) and not recwarn
