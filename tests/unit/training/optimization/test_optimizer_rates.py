"""The learning rates that are shown are those that act."""

import pytest
import torch

from library.training.optimization.optimizer_rates import LateNumber, has_own_scale, learning_rates
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.schedules import make_schedule


def weights(count=2):
    return [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(count)]


def step(optimizer):
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimizer.step()


def test_each_group_has_its_rate_under_its_name():
    one, two = weights()
    groups = [{"params": [one], "lr": 3e-4}, {"params": [two]}]
    optimizer = make_optimizer("AdamW", groups, learning_rate=1e-4)
    assert learning_rates(optimizer, ["textencoder", "unet"]) == {"lr/textencoder": 3e-4, "lr/unet": 1e-4}


def test_names_are_made_unique_and_filled_up():
    groups = [{"params": [weight]} for weight in weights(4)]
    optimizer = make_optimizer("SGD", groups, learning_rate=1.0)
    assert list(learning_rates(optimizer, ["te1", "te1", "te1"])) == ["lr/te1", "lr/te1 2", "lr/te1 3", "lr/group 4"]


def test_a_schedule_is_seen():
    optimizer = make_optimizer("SGD", [{"params": weights()}], learning_rate=1.0)
    schedule = make_schedule(optimizer, "linear", num_steps=4)
    step(optimizer)
    schedule.step()
    assert learning_rates(optimizer, ["unet"]) == {"lr/unet": 0.75}


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam", "DAdaptation"])
def test_optimizers_with_a_size_of_their_own_show_what_acts(name):
    pytest.importorskip("prodigyopt" if name == "Prodigy" else "dadaptation")
    (weight,) = weights(1)
    optimizer = make_optimizer(name, [{"params": [weight]}], learning_rate=0.5, args=["d0=0.01"])
    assert has_own_scale(optimizer)
    step(optimizer)
    d = optimizer.param_groups[0]["d"]
    assert d >= 0.01
    assert learning_rates(optimizer, ["unet"]) == {"lr/unet": 0.5, "lr/d*lr/unet": pytest.approx(d * 0.5)}


def test_the_step_of_prodigy_is_the_rate_that_is_shown():
    pytest.importorskip("prodigyopt")
    (weight,) = weights(1)
    args = ["d0=0.01", "use_bias_correction=True", "growth_rate=1.0"]
    optimizer = make_optimizer("Prodigy", [{"params": [weight]}], learning_rate=0.5, args=args)
    step(optimizer)
    moved = 1 - weight.detach()
    assert moved.mean().item() == pytest.approx(learning_rates(optimizer, ["x"])["lr/d*lr/x"], rel=1e-3)


def test_adafactor_shows_the_rate_it_sets_itself():
    (weight,) = weights(1)
    optimizer = make_optimizer("Adafactor", [{"params": [weight]}], learning_rate=1e-4)
    assert learning_rates(optimizer, ["unet"]) == {"lr/unet": 0.0}
    step(optimizer)
    assert learning_rates(optimizer, ["unet"]) == {"lr/unet": pytest.approx(1e-2)}  # 1e-2 of weights of size 1
    moved = (1 - weight.detach()).mean().item()
    assert moved == pytest.approx(1e-2)


def test_schedule_free_shows_its_own_warmup():
    pytest.importorskip("schedulefree")
    args = ["warmup_steps=4"]
    optimizer = make_optimizer("AdamWScheduleFree", [{"params": weights()}], learning_rate=1.0, args=args)
    shown = []
    for _ in range(5):
        step(optimizer)
        shown.append(learning_rates(optimizer, ["unet"])["lr/unet"])
    assert shown == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_number_of_a_device_is_the_one_of_the_look_before():
    number, late = torch.tensor(3.0), LateNumber()
    assert late.look(number) is None
    number.fill_(4.0)
    assert late.look(number) == 3.0
    assert late.look(number) == 4.0
