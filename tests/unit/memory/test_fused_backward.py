"""Parts of the parameters in the backward pass: each is stepped once, as soon as it can be, and leaves no gradient."""

import pytest
import torch
from torch import nn

from library.memory.fused_backward import BackwardParts, by_block, each_alone
from library.models.mmdit import MMDiT, MMDiTConfig
from library.training.optimization.part_steps import PartSteps

CONFIG = MMDiTConfig(depth=2, num_heads=2, head_dim=8, context_dim=16, pooled_dim=8, frequencies=8, position_side=8)


class Chain(nn.Module):
    """Two blocks between two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2))
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Chain()


def test_every_part_is_stepped_once_with_its_gradients(model):
    model(torch.ones(2, 4)).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    parts = each_alone(model.parameters())
    seen = {}
    parts_in_backward = BackwardParts(parts, lambda number: seen.__setitem__(number, parts[number][0].grad.clone()))
    with parts_in_backward.listening():
        model(torch.ones(2, 4)).sum().backward()
    assert sorted(seen) == list(range(len(parts)))
    assert all(torch.equal(seen[number], gradient) for number, gradient in enumerate(expected))
    assert parts_in_backward.num_done == len(parts)


@pytest.mark.parametrize("is_by_block", [False, True])
def test_no_more_gradients_live_than_those_of_a_part(model, is_by_block):
    parameters = list(model.parameters())
    parts = by_block([model], parameters) if is_by_block else each_alone(parameters)
    most = max(len(part) for part in parts)
    live = []

    def step(number):
        live.append(sum(parameter.grad is not None for parameter in parameters))

    with BackwardParts(parts, step).listening():
        model(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is None for parameter in parameters)
    # a linear layer gives both of its gradients at once, so that one of them may wait
    assert max(live) <= most + 1 < len(parameters)


def test_what_got_no_gradient_is_stepped_with_zeros(model):
    parts = by_block([model], model.parameters())
    norms = {}

    def step(number):
        norms[number] = sum(parameter.grad.norm() for parameter in parts[number])

    with BackwardParts(parts, step).listening():
        model.last(torch.ones(2, 4)).sum().backward()
    assert len(norms) == len(parts)
    assert [bool(norm) for norm in norms.values()].count(True) == 2


def test_what_trains_no_more_makes_no_step_and_gets_no_zeros(model):
    """A part of which nothing trains, and one of which half does, as where a text encoder has had its steps."""
    parts = [list(model.first.parameters()), list(model.blocks.parameters()), list(model.last.parameters())]
    gradients = {}

    def step(number):
        gradients[number] = [parameter.grad is not None for parameter in parts[number]]

    in_backward = BackwardParts(parts, step)
    with in_backward.listening():
        model(torch.ones(2, 4)).sum().backward()
    assert sorted(gradients) == [0, 1, 2] and all(map(all, gradients.values()))

    gradients.clear()
    for parameter in [*parts[0], *parts[1][:4]]:
        parameter.requires_grad_(False)
    with in_backward.listening():
        model(torch.ones(2, 4)).sum().backward()
    assert gradients == {1: [False] * 4 + [True] * 4, 2: [True, True]}
    assert in_backward.num_done == 2

    gradients.clear()
    with in_backward.listening():  # the part of which half trains is not reached
        model.last(torch.ones(2, 4)).sum().backward()
    assert gradients == {1: [False] * 4 + [True] * 4, 2: [True, True]}


def test_a_fused_step_leaves_what_trains_no_more_as_it_is(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    parts = by_block([model], model.parameters())
    steps = PartSteps(optimizer, parts)
    in_backward = BackwardParts(parts, steps.step)

    def train():
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with in_backward.listening():
            model(torch.ones(2, 4)).sum().backward()
        return [not torch.equal(now, old) for now, old in zip(model.parameters(), before, strict=True)]

    assert all(train())
    frozen = [*model.first.parameters(), model.blocks[0][0].weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    ids = {id(parameter) for parameter in frozen}
    assert train() == [id(parameter) not in ids for parameter in model.parameters()]


def test_a_failing_pass_leaves_no_gradients(model):
    def step(number):
        raise RuntimeError("out of memory")

    parts = BackwardParts(by_block([model], model.parameters()), step)
    with pytest.raises(RuntimeError, match="out of memory"), parts.listening():
        model(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_outside_nothing_is_stepped(model):
    parts = BackwardParts(each_alone(model.parameters()), lambda number: pytest.fail("stepped"))
    model(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    parts.close()


def test_blocks_of_an_mmdit_are_parts():
    model = MMDiT(CONFIG)
    parts = by_block([model], model.parameters())
    sizes = sorted((len(part) for part in parts), reverse=True)
    blocks = [len(list(block.parameters())) for block in model.joint_blocks]
    assert sizes[:2] == sorted(blocks, reverse=True)
    assert set(sizes[2:]) == {1}
    assert sum(sizes) == len(list(model.parameters()))


def test_frozen_parameters_of_a_block_are_in_no_part():
    model = MMDiT(CONFIG)
    trained = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    parts = by_block([model], trained)
    assert {id(p) for part in parts for p in part} == {id(p) for p in trained}
