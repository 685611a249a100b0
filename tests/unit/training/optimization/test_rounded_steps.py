"""Steps of weights in 16 bits: small changes are kept, whatever the optimizer, and going on changes no bit."""

import io

import pytest
import torch
from torch import nn

from library.training.optimization import rounded_steps
from library.training.optimization.optimizer_modes import evaluation_weights, has_modes
from library.training.optimization.optimizer_state import load_optimizer_state, optimizer_state
from library.training.optimization.optimizers import make_optimizer

NAMES = ["AdamW", "AdamW8bit", "SGDNesterov", "Adafactor", "Lion", "AdamWScheduleFree", "Prodigy"]
PACKAGES = {"Lion": "lion_pytorch", "AdamWScheduleFree": "schedulefree", "Prodigy": "prodigyopt"}
ARGUMENTS = {"Adafactor": ["relative_step=False", "scale_parameter=False"]}
RATES = {"Prodigy": 1.0, "SGDNesterov": 0.01, "AdamWScheduleFree": 1e-3}
SIDE = 72  # bitsandbytes keeps 8 bits for 4096 numbers and more


def weights(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((SIDE, SIDE), (SIDE,), (SIDE, SIDE))
    return [nn.Parameter(torch.randn(shape, generator=generator).to(torch.bfloat16).to(dtype)) for shape in shapes]


def made(name, parameters, rounding, rate=None):
    pytest.importorskip(PACKAGES.get(name, "torch"))
    groups = [{"params": parameters[:2]}, {"params": parameters[2:]}]
    rate = RATES.get(name, 1e-3) if rate is None else rate
    return make_optimizer(name, groups, learning_rate=rate, args=ARGUMENTS.get(name), seed=5, rounding=rounding)


def take_steps(optimizer, parameters, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step + 100)
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator) * 0.1 + 0.5 * parameter.detach().float()
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors(item)]


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_in_bf16_follow_those_in_float32(name, rounding):
    exact, short = weights(torch.float32), weights(torch.bfloat16)
    start = [parameter.detach().float().clone() for parameter in short]
    first, second = made(name, exact, None), made(name, short, rounding)
    take_steps(first, exact, range(40))
    take_steps(second, short, range(40))
    moved = torch.cat([(a - b).flatten() for a, b in zip(exact, start, strict=True)])
    error = torch.cat([(a.float() - b).flatten() for a, b in zip(short, exact, strict=True)])
    assert error.norm() < 0.5 * moved.norm()
    assert error.mean().abs() < 0.02 * moved.abs().mean()


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Adafactor"])
def test_a_small_learning_rate_moves_weights_that_stand_still_with_nearest(name):
    """A step of 1e-5 is far below the last bit of weights around 1."""
    distances = {}
    for rounding in ("nearest", "stochastic", "kahan"):
        parameters = [nn.Parameter(torch.ones(SIDE, SIDE, dtype=torch.bfloat16))]
        optimizer = make_optimizer(
            name,
            [{"params": parameters}],
            learning_rate=1e-5,
            args=[*ARGUMENTS.get(name, ()), "weight_decay=0.0"],
            seed=1,
            rounding=rounding,
        )
        for _ in range(300):
            parameters[0].grad = torch.ones_like(parameters[0])
            optimizer.step()
        distances[rounding] = 1 - parameters[0].detach().float().mean().item()
    assert distances["nearest"] == 0
    assert distances["stochastic"] == pytest.approx(3e-3, rel=0.1)
    assert distances["kahan"] == pytest.approx(3e-3, rel=0.35)  # bf16 below 1 has steps of 0.0039


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_a_state_changes_no_bit(name, rounding):
    whole = weights(torch.bfloat16)
    optimizer = made(name, whole, rounding)
    take_steps(optimizer, whole, range(3))
    file = io.BytesIO()
    torch.save(optimizer_state(optimizer), file)
    rest = [nn.Parameter(parameter.detach().clone()) for parameter in whole]
    take_steps(optimizer, whole, range(3, 6))
    file.seek(0)
    again = made(name, rest, rounding)
    load_optimizer_state(again, torch.load(file, weights_only=True))
    take_steps(again, rest, range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(whole, rest, strict=True))
    states = [optimizer_state(each)["tensors"] for each in (optimizer, again)]
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "SGDNesterov", "AdamWScheduleFree"])
def test_how_many_weights_step_at_a_time_changes_nothing(name, monkeypatch):
    results = []
    for number in (1, SIDE * SIDE + SIDE, 2**22):
        monkeypatch.setattr(rounded_steps, "_NUMBERS_AT_A_TIME", number)
        parameters = weights(torch.bfloat16)
        optimizer = made(name, parameters, "stochastic")
        take_steps(optimizer, parameters, range(4))
        results.append((parameters, [{**group, "params": None} for group in optimizer.param_groups]))
    for parameters, groups in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(parameters, results[0][0], strict=True))
        assert groups == results[0][1]


@pytest.mark.parametrize(
    ("name", "rounding", "expected"),
    [
        ("AdamW", "stochastic", 4),  # two moments in bf16
        ("AdamW", "kahan", 6),
        ("AdamW8bit", "stochastic", 2),
        ("AdamW8bit", "kahan", 4),
        ("Adafactor", "stochastic", 0),
        ("Adafactor", "kahan", 2),
        ("AdamWScheduleFree", "stochastic", 4),
    ],
)
def test_bytes_that_the_optimizer_keeps_for_each_number(name, rounding, expected):
    """Of a matrix; beside them AdamW8bit keeps a scale for each 256 numbers, Adafactor one for each row and column."""
    parameter = nn.Parameter(torch.ones(512, 512, dtype=torch.bfloat16))
    pytest.importorskip(PACKAGES.get(name, "torch"))
    optimizer = make_optimizer(
        name, [{"params": [parameter]}], learning_rate=1e-3, args=ARGUMENTS.get(name), rounding=rounding
    )
    take_steps(optimizer, [parameter], range(2))
    kept = [tensor for key, tensor in optimizer.state[parameter].items() if isinstance(tensor, torch.Tensor)]
    kept = [tensor for tensor in kept if tensor.numel() > 256]  # without tables that all weights share
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert num_bytes / parameter.numel() == pytest.approx(expected, abs=0.04)
    assert set(optimizer.state) == {parameter}


def test_weights_in_fp16_keep_their_moments_in_float32():
    """Squares of small gradients are 0 in fp16, and a step that is divided by them has no bounds."""
    parameters = [nn.Parameter(torch.ones(8, 8, dtype=torch.float16))]
    optimizer = make_optimizer("AdamW", [{"params": parameters}], learning_rate=1e-3, rounding="stochastic")
    for _ in range(5):
        parameters[0].grad = torch.full_like(parameters[0], 1e-5)
        optimizer.step()
    moments = optimizer.state[parameters[0]]
    assert moments["exp_avg_sq"].dtype == torch.float32 and (moments["exp_avg_sq"] > 0).all()
    assert 1 - parameters[0].mean().item() == pytest.approx(5e-3, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_fp16_are_shown_and_saved_as_those_in_float32_and_train_on_with_their_own_bits(name):
    exact, short = weights(torch.float32), weights(torch.float16)
    first, second = made(name, exact, None), made(name, short, "stochastic")
    for parameters, optimizer in ((exact, first), (short, second)):
        take_steps(optimizer, parameters, range(3))
    before = [parameter.detach().clone() for parameter in short]
    with evaluation_weights(first), evaluation_weights(second):
        for parameter, wanted in zip(short, exact, strict=True):
            torch.testing.assert_close(parameter.float(), wanted.detach(), rtol=2e-3, atol=2e-3)
        assert has_modes(second) == (not torch.equal(short[0], before[0]))
    assert all(torch.equal(*pair) for pair in zip(short, before, strict=True))
    take_steps(second, short, range(3, 5))
    assert all(
        parameter.isfinite().all() and not torch.equal(parameter, old)
        for parameter, old in zip(short, before, strict=True)
    )


def test_other_seeds_round_otherwise():
    results = []
    for seed in (1, 1, 2):
        parameters = weights(torch.bfloat16)
        optimizer = make_optimizer(
            "AdamW", [{"params": parameters}], learning_rate=1e-4, seed=seed, rounding="stochastic"
        )
        take_steps(optimizer, parameters, range(2))
        results.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_after_kahan_summation_random_rounding_takes_the_rest_along():
    parameters = [nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))]
    first = make_optimizer("SGD", [{"params": parameters}], learning_rate=1e-3, rounding="kahan")
    parameters[0].grad = torch.ones_like(parameters[0])
    first.step()
    assert (parameters[0] == 1).all()
    second = make_optimizer("SGD", [{"params": parameters}], learning_rate=0.0, seed=3, rounding="stochastic")
    load_optimizer_state(second, optimizer_state(first))
    second.param_groups[0]["lr"] = 0.0
    second.step()
    assert parameters[0].detach().float().mean().item() == pytest.approx(0.999, abs=2e-4)
    assert not second.state
