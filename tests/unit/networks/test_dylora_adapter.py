import pytest
import torch
from torch import nn

from networks.adapters import LoraAdapter
from networks.dylora_adapter import DyLoraAdapter

LAYERS = {"linear": lambda: nn.Linear(6, 9), "conv": lambda: nn.Conv2d(3, 5, 3, padding=1)}
INPUTS = {"linear": (2, 4, 6), "conv": (2, 3, 5, 4)}
RANK, ALPHA = 6, 3.0


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def adapt(kind, unit=2):
    torch.manual_seed(0)
    adapter = DyLoraAdapter("lora", LAYERS[kind]().double().requires_grad_(False), RANK, ALPHA, unit=unit).double()
    for factor in adapter.parameters():
        nn.init.normal_(factor)
    adapter.attach()
    return adapter


def places(gradient, axis):
    """The ranks that have a gradient."""
    other = [i for i in range(gradient.dim()) if i != axis]
    return torch.nonzero(gradient.abs().amax(other)).flatten().tolist()


def run(adapter, x):
    """Output and the ranks with gradients of one pass."""
    adapter.zero_grad()
    output = adapter.target(x)
    output.square().sum().backward()
    trained = places(adapter.lora_down.weight.grad, 0)
    assert trained == places(adapter.lora_up.weight.grad, 1)
    return output.detach(), trained


def first_ranks(adapter, number, kind):
    """A LoRA of the first ranks, at the strength of the whole."""
    plain = LoraAdapter("lora", LAYERS[kind]().double(), number, ALPHA * number / RANK).double()
    plain.target.load_state_dict(adapter.target.state_dict())
    with torch.no_grad():
        plain.lora_down.weight.copy_(adapter.lora_down.weight[:number])
        plain.lora_up.weight.copy_(adapter.lora_up.weight[:, :number])
    plain.attach()
    return plain


@pytest.mark.parametrize("unit", [1, 2, 3])
def test_a_pass_trains_the_ranks_of_one_unit_with_those_before_it_alone(kind, unit):
    adapter, x = adapt(kind, unit), torch.randn(INPUTS[kind], dtype=torch.float64)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        output, trained = run(adapter, x)
        first = trained[0]
        assert first % unit == 0 and trained == list(range(first, first + unit))
        torch.testing.assert_close(output, first_ranks(adapter, first + unit, kind).target(x))
        seen.add(first)
    assert seen == set(range(0, RANK, unit))


def test_gradients_of_the_trained_ranks_are_those_of_a_lora_of_the_ranks_that_act(kind):
    adapter, x = adapt(kind), torch.randn(INPUTS[kind], dtype=torch.float64)
    _, trained = run(adapter, x)
    plain = first_ranks(adapter, trained[-1] + 1, kind)
    plain.target(x).square().sum().backward()
    for own, other, axis in ((adapter.lora_down, plain.lora_down, 0), (adapter.lora_up, plain.lora_up, 1)):
        index = torch.tensor(trained)
        expected = other.weight.grad.index_select(axis, index)
        torch.testing.assert_close(own.weight.grad.index_select(axis, index), expected)


def test_all_ranks_act_where_nothing_is_trained(kind):
    adapter, x = adapt(kind).eval(), torch.randn(INPUTS[kind], dtype=torch.float64)
    torch.testing.assert_close(adapter.target(x), first_ranks(adapter, RANK, kind).target(x))


def test_a_unit_of_the_whole_rank_is_lora(kind):
    adapter, x = adapt(kind, unit=RANK), torch.randn(INPUTS[kind], dtype=torch.float64)
    output, trained = run(adapter, x)
    assert trained == list(range(RANK))
    torch.testing.assert_close(output, adapter.eval().target(x))


def test_the_draw_follows_the_seed_and_layers_draw_their_own(kind):
    adapter, x = adapt(kind, unit=1), torch.randn(INPUTS[kind], dtype=torch.float64)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(adapter, x)[1] for _ in range(6)])
    assert runs[0] == runs[1]
    assert len(set(map(tuple, runs[0]))) > 1


def test_recomputed_pass_draws_the_same(kind):
    from torch.utils.checkpoint import checkpoint

    adapter, x = adapt(kind, unit=1), torch.randn(INPUTS[kind], dtype=torch.float64)
    for seed in range(4):
        torch.manual_seed(seed)
        output, trained = run(adapter, x)
        expected = [parameter.grad.clone() for parameter in adapter.parameters()]
        adapter.zero_grad()
        torch.manual_seed(seed)
        again = checkpoint(adapter.target, x, use_reentrant=False)
        again.square().sum().backward()
        assert torch.equal(again, output) and places(adapter.lora_down.weight.grad, 0) == trained
        assert all(torch.equal(p.grad, own) for p, own in zip(adapter.parameters(), expected, strict=True))


def test_file_is_that_of_a_lora(kind):
    adapter = adapt(kind)
    plain = LoraAdapter("lora", adapter.target, RANK, ALPHA)
    assert {end: t.shape for end, t in adapter.saved().items()} == {end: t.shape for end, t in plain.saved().items()}
    assert torch.equal(adapter.saved()[".lora_down.weight"], adapter.lora_down.weight)
    assert sorted(adapter.state_dict()) == ["lora_down.weight", "lora_up.weight"]


def test_unit_has_to_divide_the_rank():
    with pytest.raises(ValueError, match="units of 4"):
        adapt("linear", unit=4)
