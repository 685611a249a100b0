import math

import pytest
import torch
from torch import nn

from networks.lora_fa_adapter import LoraFaAdapter

LAYERS = {"linear": lambda: nn.Linear(6, 9), "conv": lambda: nn.Conv2d(3, 5, 3, padding=1)}
INPUTS = {"linear": (2, 4, 6), "conv": (2, 3, 5, 4)}


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def adapt(kind, **options):
    torch.manual_seed(0)
    adapter = LoraFaAdapter("lora", LAYERS[kind]().requires_grad_(False), 4, 2.0, **options)
    adapter.reset(torch.Generator().manual_seed(1))
    adapter.attach()
    return adapter


def test_only_up_is_trained_but_both_are_in_the_state(kind):
    adapter = adapt(kind)
    assert [name for name, _ in adapter.named_parameters()] == ["lora_up.weight"]
    assert sorted(adapter.state_dict()) == ["lora_down.weight", "lora_up.weight"]
    adapter.target(torch.randn(INPUTS[kind])).square().sum().backward()
    assert adapter.lora_up.weight.grad.abs().min() > 0
    assert adapter.lora_down.weight.grad is None


def test_acts_as_lora_does(kind):
    adapter = adapt(kind)
    x = torch.randn(INPUTS[kind])
    base = adapter.base_forward(x)
    torch.testing.assert_close(adapter.target(x), base)
    nn.init.normal_(adapter.lora_up.weight)
    changed = adapter.target(x)
    adapter.detach()
    adapter.merge()
    torch.testing.assert_close(adapter.target(x), changed)
    assert (changed - base).abs().max() > 0.1


def test_start_values_have_the_deviation_of_the_formula():
    layer = nn.Linear(1500, 8)
    adapter = LoraFaAdapter("lora", layer, 100, 1.0)
    adapter.reset(torch.Generator().manual_seed(2))
    down = adapter.lora_down.weight
    assert down.std().item() == pytest.approx(math.sqrt(2 / 1600), rel=0.02)
    assert abs(down.mean().item()) < 0.001
    again = LoraFaAdapter("lora", layer, 100, 1.0)
    again.reset(torch.Generator().manual_seed(2))
    assert torch.equal(again.lora_down.weight, down) and not adapter.lora_up.weight.any()


def test_parts_have_a_frozen_factor_each():
    adapter = LoraFaAdapter("lora", nn.Linear(6, 9), 2, 1.0, num_parts=3)
    adapter.reset()
    assert [name for name, _ in adapter.named_parameters()] == [f"lora_up.{i}.weight" for i in range(3)]
    assert adapter.factors().down.shape == (6, 6)


def test_shrinking_leaves_down_as_it_is(kind):
    adapter = adapt(kind)
    nn.init.normal_(adapter.lora_up.weight)
    before, down = adapter.norm(), adapter.lora_down.weight.clone()
    adapter.shrink(torch.tensor(0.25))
    torch.testing.assert_close(adapter.norm(), before / 4)
    assert torch.equal(adapter.lora_down.weight, down)


def test_input_of_a_linear_layer_is_not_kept():
    adapter, x = adapt("linear"), torch.randn(2, 4, 6)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)), lambda _: None):
        adapter.target(x)
    assert kept and (8, 6) not in kept
