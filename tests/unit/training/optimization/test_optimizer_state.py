"""Continuing from a saved state gives the bytes of an unbroken run, for every optimizer and schedule."""

from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from library.errors import CheckpointError, OptionError
from library.training.optimization.optimizer_kinds import KNOWN_NAMES, find_optimizer
from library.training.optimization.optimizer_state import load_optimizer_state, optimizer_state
from library.training.optimization.optimizers import check_optimizer, make_optimizer
from library.training.optimization.schedule_state import load_schedule_state, schedule_state
from library.training.optimization.schedules import make_schedule

SHAPES = ((96, 64), (4, 3), (2, 3, 2, 2))
# Of pytorch-optimizer, each for something special in its state: see the names of what they keep.
SPECIAL = {
    "AdaShift": "a queue of gradients",
    "Conda": "objects of its own package",
    "Alice": "random numbers",
    "EmoNavi": "entries without parameter",
    "MADGRAD": "entries without parameter",
    "ScalableShampoo": "objects with tensors",
    "ScheduleFreeAdamW": "a mode",
    "SOAP": "lists of tensors",
    "SPlus": "an average and a mode",
    "StableAdamW": "",
    "CAME": "",
    "ADOPT": "",
    "AdEMAMix": "",
}
DOTTED = ("pytorch_optimizer.Prodigy", "pytorch_optimizer.DAdaptSGD", "torch.optim.Adafactor")
ARGS = {
    "Adam": ["amsgrad=True"],
    "RMSprop": ["momentum=0.5", "centered=True"],
    "AdaShift": ["keep_num=2"],
    "Alice": ["rank=8", "leading_basis=4", "update_interval=1"],
    "SGD": ["momentum=0.9"],
}


def parameters(dtype, values=None):
    generator = torch.Generator().manual_seed(0)
    values = values or [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    return [torch.nn.Parameter(value.detach().clone()) for value in values]


def build(name, weights, seed=0):
    pytest.importorskip("pytorch_optimizer" if name in SPECIAL else find_optimizer(name).module)
    finds_its_size = "DAdapt" in name or "Prodigy" in name
    rate, args = (1.0, ["d0=0.01"]) if finds_its_size else (1e-2, ARGS.get(name))
    groups = [{"params": weights[:1]}, {"params": weights[1:]}]
    return make_optimizer(name, groups, learning_rate=rate, args=args, seed=seed)


def train(optimizer, weights, steps, schedule=None):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = (weight.detach() * 0.1 + torch.randn(weight.shape, generator=generator)).to(weight.dtype)
        optimizer.step()
        if schedule is not None:
            schedule.step()


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


def bits(weights):
    return [weight.detach().view(torch.uint8).tolist() for weight in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*KNOWN_NAMES, *SPECIAL, *DOTTED])
def test_three_steps_and_three_more_are_six(name, dtype, tmp_path):
    unbroken, weights = parameters(dtype), parameters(dtype)
    train(build(name, unbroken), unbroken, range(6))

    first = build(name, weights)
    train(first, weights, range(3))
    state = through_a_file(optimizer_state(first), tmp_path)
    assert bits(weights) != bits(unbroken)
    resumed = parameters(dtype, weights)
    second = build(name, resumed)
    load_optimizer_state(second, state)
    train(second, resumed, range(3, 6))
    assert bits(resumed) == bits(unbroken)


def test_random_numbers_of_a_step_depend_on_the_seed_and_disturb_no_others():
    pytest.importorskip("pytorch_optimizer")
    results = []
    for seed, num_drawn in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(num_drawn)  # as batches do, differently in each process
        weights = parameters(torch.float32)
        optimizer = build("Alice", weights, seed)
        torch.rand(num_drawn)
        before = torch.get_rng_state()
        train(optimizer, weights, range(3))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(bits(weights))
    assert results[0] == results[1] != results[2]


def test_a_state_is_a_copy_that_later_steps_do_not_change():
    weights = parameters(torch.float32)
    optimizer = build("AdamW", weights)
    train(optimizer, weights, range(1))
    state = optimizer_state(optimizer)
    before = [tensor.clone() for tensor in state["tensors"]]
    other = build("AdamW", weights)
    load_optimizer_state(other, state)
    train(optimizer, weights, range(1, 3))
    train(other, weights, range(3))
    assert all(torch.equal(a, b) for a, b in zip(state["tensors"], before, strict=True))


def test_wrapped_by_accelerate_it_is_the_same_state():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    weights = parameters(torch.float32)
    optimizer = build("AdamW", weights)
    wrapped = Accelerator(cpu=True).prepare_optimizer(optimizer)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(optimizer, weights, range(2))
    state = optimizer_state(wrapped)
    assert state["optimizer"] == "torch.optim.adamw.AdamW"
    load_optimizer_state(wrapped, state)
    assert optimizer_state(optimizer)["state"] == state["state"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "prodigyopt.prodigy.Prodigy"}, r"belongs to the optimizer prodigyopt.*--optimizer_type"),
        ({"shapes": [[[3, 3]]]}, "1 weights in 1 groups, this run trains 3 weights in 2 groups"),
        ({"format": 99}, "format 99"),
        ({"attributes": {"object": ["os", "system"], "attributes": {"dict": []}}}, r"names os\.system"),
        ({"attributes": {"object": ["torch", "load"], "attributes": {"dict": []}}}, r"torch\.load, which is no class"),
        ({"attributes": {"member": ["torch.optim", "AdamW"], "name": "step"}}, "AdamW, which is no class of that kind"),
        ({"attributes": {"dict": [["step", 1]]}}, "replaces step, which is no state of torch"),
        ({"attributes": {"dict": [["param_groups", {"list": []}]]}}, "replaces param_groups"),
        ({"attributes": {"dict": [["add_param_group", None]]}}, "replaces add_param_group"),
        ({"attributes": {"dict": [["one", {"dtype": "load"}]]}}, "names load as a number format"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    weights = parameters(torch.float32)
    optimizer = build("AdamW", weights)
    with pytest.raises(CheckpointError, match=message):
        load_optimizer_state(optimizer, {**optimizer_state(optimizer), **change})


def test_tensors_that_are_shared_stay_shared():
    weights = parameters(torch.float32)
    optimizer, other = build("AdamW", weights), build("AdamW", weights)
    shared = torch.ones(3)
    optimizer.one = {"of": [shared], "and": (shared, weights[0], torch.bfloat16)}
    load_optimizer_state(other, optimizer_state(optimizer))
    assert other.one["of"][0] is other.one["and"][0] is not shared
    assert other.one["and"][1:] == (weights[0], torch.bfloat16)


def test_a_state_that_cannot_be_kept_is_found_before_the_run():
    pytest.importorskip("pytorch_optimizer")
    check_optimizer("SPAM", None, 1e-3)
    with pytest.raises(OptionError, match="SPAM: its state holds a SGD, which cannot be saved exactly"):
        check_optimizer("SPAM", None, 1e-3, keeps_state=True)


SCHEDULES = (
    *("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
    *("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "piecewise_constant"),
)
CLASSES = {
    "StepLR": ["step_size=2"],
    "MultiStepLR": ["milestones=[2,4]"],
    "OneCycleLR": ["max_lr=0.1", "total_steps=8"],
    "CosineAnnealingWarmRestarts": ["T_0=3"],
    "CosineAnnealingLR": ["T_max=5"],
    "CyclicLR": ["base_lr=0.01", "max_lr=0.1", "cycle_momentum=False"],
    "ExponentialLR": ["gamma=0.9"],
    "PolynomialLR": ["total_iters=5"],
}


def schedule_of(optimizer, name):
    options = SimpleNamespace(
        learning_rate=1e-2,
        lr_decay_steps=3,
        lr_scheduler_num_cycles=2,
        lr_scheduler_power=2,
        lr_scheduler_timescale=None,
        lr_scheduler_min_lr_ratio=0.1,
        lr_scheduler_type=name if name in CLASSES else "",
        lr_scheduler_args=CLASSES.get(name, ["step_rules=1:2,0.5:4,0.1"] if "piece" in name else None),
    )
    warmup = 0 if name in ("constant", "piecewise_constant", *CLASSES) else 2
    kept = name if name in SCHEDULES else "constant"
    return make_schedule(optimizer, kept, num_steps=6, warmup=warmup, options=options)


@pytest.mark.parametrize("name", [*SCHEDULES, *CLASSES])
def test_a_schedule_goes_on_from_its_state(name, tmp_path):
    unbroken, weights = parameters(torch.float32), parameters(torch.float32)
    whole = build("AdamW", unbroken)
    train(whole, unbroken, range(6), schedule_of(whole, name))

    first = build("AdamW", weights)
    schedule = schedule_of(first, name)
    train(first, weights, range(3), schedule)
    states = through_a_file([optimizer_state(first), schedule_state(schedule)], tmp_path)
    resumed = parameters(torch.float32, weights)
    second = build("AdamW", resumed)
    schedule = schedule_of(second, name)
    load_optimizer_state(second, states[0])
    load_schedule_state(schedule, states[1], num_steps=3)
    train(second, resumed, range(3, 6), schedule)
    assert bits(resumed) == bits(unbroken)
    assert isinstance(schedule, LambdaLR) == (name in SCHEDULES)


@pytest.mark.parametrize("args", [None, ["relative_step=False"]], ids=["relative", "fixed"])
def test_adafactor_and_its_schedule_go_on(args, tmp_path):
    def start(weights):
        optimizer = make_optimizer("Adafactor", [{"params": weights}], learning_rate=1e-2, args=args)
        return optimizer, make_schedule(optimizer, "constant" if args else "adafactor:0.01", num_steps=6)

    unbroken, weights = parameters(torch.bfloat16), parameters(torch.bfloat16)
    whole, schedule = start(unbroken)
    train(whole, unbroken, range(6), schedule)
    first, schedule = start(weights)
    train(first, weights, range(3), schedule)
    states = through_a_file([optimizer_state(first), schedule_state(schedule)], tmp_path)
    resumed = parameters(torch.bfloat16, weights)
    second, schedule = start(resumed)
    load_optimizer_state(second, states[0])
    load_schedule_state(schedule, states[1], num_steps=3)
    train(second, resumed, range(3, 6), schedule)
    assert bits(resumed) == bits(unbroken)
