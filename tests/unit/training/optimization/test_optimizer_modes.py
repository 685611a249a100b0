"""Weights to evaluate, and the exact way back to those that train."""

import pytest
import torch

from library.training.optimization.optimizer_modes import (
    evaluation_weights,
    has_modes,
    is_schedule_free,
    set_train_mode,
    skips_on_device,
)
from library.training.optimization.optimizer_state import optimizer_state
from library.training.optimization.optimizers import make_optimizer

WITH_MODES = ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "ScheduleFreeAdamW", "SPlus")


def start(name, dtype=torch.float32):
    pytest.importorskip("pytorch_optimizer" if name in ("ScheduleFreeAdamW", "SPlus") else "schedulefree")
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(16, 8, generator=generator).to(dtype))
    return make_optimizer(name, [{"params": [weight]}], learning_rate=0.1), weight


def train(optimizer, weight, steps):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


def same_state(one, other):
    tensors = zip(one.pop("tensors"), other.pop("tensors"), strict=True)
    return one == other and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", WITH_MODES)
def test_afterwards_no_bit_of_weights_and_state_has_changed(name, dtype):
    optimizer, weight = start(name, dtype)
    train(optimizer, weight, 8)  # RAdam's first five are of SGD
    before, state = weight.detach().clone(), optimizer_state(optimizer)
    with evaluation_weights(optimizer):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert same_state(optimizer_state(optimizer), state)


def test_a_run_with_evaluations_equals_one_without():
    plain, evaluated = start("AdamWScheduleFree"), start("AdamWScheduleFree")
    train(*plain, 4)
    for step in range(4):
        optimizer, weight = evaluated
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        with evaluation_weights(optimizer):
            pass
        optimizer.step()
    assert torch.equal(plain[1], evaluated[1])


def test_the_way_back_holds_after_an_error_too():
    optimizer, weight = start("AdamWScheduleFree")
    train(optimizer, weight, 3)
    before = weight.detach().clone()
    with pytest.raises(KeyError), evaluation_weights(optimizer):
        raise KeyError("a failed sample")
    assert torch.equal(weight, before)
    train(optimizer, weight, 1)


def test_evaluation_weights_are_the_average_of_the_steps():
    """With a constant rate, x is the mean of the points z that plain SGD visits (arXiv:2405.15682, equation 3)."""
    optimizer, weight = start("SGDScheduleFree")
    z, visited = weight.detach().clone(), []
    for step in range(4):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        z -= 0.1 * weight.grad
        visited.append(z.clone())
        optimizer.step()
    with evaluation_weights(optimizer):
        torch.testing.assert_close(weight.detach(), torch.stack(visited).mean(0))


def test_other_optimizers_keep_their_weights():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    set_train_mode(optimizer)
    address = weight.data_ptr()
    with evaluation_weights(optimizer):
        assert weight.tolist() == [1, 1, 1] and weight.data_ptr() == address
    assert not has_modes(optimizer) and not is_schedule_free(optimizer)


def test_what_averages_weights_is_told_from_what_needs_no_schedule():
    assert is_schedule_free(start("RAdamScheduleFree")[0]) and is_schedule_free(start("ScheduleFreeAdamW")[0])
    splus, _ = start("SPlus")
    assert has_modes(splus) and not is_schedule_free(splus)


# Steps that are passed over


def fused(name, args=None, *, use_fused=True):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(name, [{"params": [weight]}], learning_rate=0.1, args=args, use_fused=use_fused)
    return weight, optimizer


def step(weight, optimizer, gradient, *, is_bad):
    weight.grad = torch.full_like(weight, gradient)
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(is_bad))
    optimizer.step()
    optimizer.found_inf = None


@pytest.mark.parametrize(("name", "args"), [("AdamW", None), ("Adam", None), ("SGD", None), ("Adagrad", None)])
def test_a_first_step_that_is_passed_over_is_as_if_it_had_not_been(name, args):
    weight, optimizer = fused(name, args)
    other, unbroken = fused(name, args)
    weight.grad = torch.ones(3)
    assert skips_on_device(optimizer)
    step(weight, optimizer, float("nan"), is_bad=True)
    assert torch.equal(weight, torch.ones(3))
    for _ in range(2):
        step(weight, optimizer, 0.5, is_bad=False)
        step(other, unbroken, 0.5, is_bad=False)
    assert torch.equal(weight, other)


@pytest.mark.parametrize("name", ["SGD", "SGDNesterov"])
def test_momentum_is_passed_over_once_its_buffers_have_a_value(name):
    weight, optimizer = fused(name, ["momentum=0.9"])
    other, unbroken = fused(name, ["momentum=0.9"])
    weight.grad = torch.ones(3)
    assert not skips_on_device(optimizer)
    for good in (0.5, 0.25):
        step(weight, optimizer, good, is_bad=False)
        assert skips_on_device(optimizer)
        step(weight, optimizer, float("inf"), is_bad=True)
        step(other, unbroken, good, is_bad=False)
    assert torch.equal(weight, other)


def test_momentum_of_a_weight_without_gradient_needs_no_value():
    weight, optimizer = fused("SGD", ["momentum=0.9"])
    step(weight, optimizer, 0.5, is_bad=False)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert skips_on_device(optimizer)


def test_other_optimizers_need_to_be_told():
    assert not skips_on_device(fused("AdamW", use_fused=False)[1])
    assert not skips_on_device(fused("Adamax")[1])
