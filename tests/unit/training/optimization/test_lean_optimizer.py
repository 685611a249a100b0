"""Optimizers that leave torch's compiler alone."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch

from library.training.optimization.lean_optimizer import compilation_off, without_compiler

KINDS = [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam]


def weights():
    return [torch.nn.Parameter(torch.linspace(-1, 1, size).reshape(2, -1)) for size in (12, 30)]


def train(optimizer, num_steps=4):
    for _ in range(num_steps):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = parameter.detach() ** 2 + 0.1
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.param_groups[0]["params"]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_the_class_itself(kind):
    expected, trained = train(kind(weights(), lr=0.01)), train(without_compiler(kind)(weights(), lr=0.01))
    assert all(torch.equal(a, b) for a, b in zip(expected, trained, strict=True))
    assert all(parameter.grad is None for parameter in trained)


def test_a_state_moves_between_the_two():
    lean, plain = without_compiler(torch.optim.AdamW)(weights(), lr=0.01), torch.optim.AdamW(weights(), lr=0.01)
    for source, target in ((lean, plain), (plain, lean)):
        train(source)
        target.load_state_dict(deepcopy(source.state_dict()))
        with torch.no_grad():
            for a, b in zip(target.param_groups[0]["params"], source.param_groups[0]["params"], strict=True):
                a.copy_(b)
        assert all(torch.equal(a, b) for a, b in zip(train(source, 1), train(target, 1), strict=True))


def test_a_closure_has_gradients_and_the_update_has_none():
    optimizer = without_compiler(torch.optim.AdamW)(weights(), lr=0.01)
    parameter = optimizer.param_groups[0]["params"][0]

    def closure():
        with torch.enable_grad():
            loss = (parameter**2).sum()
            loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert parameter.is_leaf and torch.is_grad_enabled()


def test_schedules_accept_it():
    optimizer = without_compiler(torch.optim.AdamW)(weights(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_compiler_stays_unloaded():
    code = (
        "import sys, torch\n"
        "from library.training.optimization.optimizers import check_optimizer, make_optimizer\n"
        "check_optimizer('AdamW', None, 1e-3)\n"
        "parameter = torch.nn.Parameter(torch.ones(2, 2))\n"
        "optimizer = make_optimizer('AdamW', [{'params': [parameter]}], learning_rate=1e-3)\n"
        "parameter.grad = torch.ones(2, 2)\n"
        "optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_functions_decorated_meanwhile_stay_as_they_are_written():
    def double(x):
        return 2 * x

    before = torch.compile
    with compilation_off():
        assert torch.compile(double, dynamic=False) is double
        assert torch.compile(fullgraph=True)(double) is double
    assert torch.compile is before
