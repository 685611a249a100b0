import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.adapters import Dropouts, Factors, LoraAdapter, is_block_diagonal


def adapt(layer, rank=2, alpha=1.0, seed=0, **options):
    """An attached adapter with values."""
    adapter = LoraAdapter("lora", layer, rank, alpha, **options)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    adapter.attach()
    return adapter


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 6).requires_grad_(False)


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, (2, 3), stride=2, padding=1).requires_grad_(False)


def test_model_keeps_its_modules_and_state(linear):
    model = nn.Sequential(linear)
    before = copy.deepcopy(model.state_dict())
    adapter = adapt(linear)
    assert [name for name, _ in model.named_modules()] == ["", "0"]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert sorted(adapter.state_dict()) == ["lora_down.weight", "lora_up.weight"]


def test_detached_layer_is_as_before(linear):
    x = torch.randn(3, 4)
    before = linear(x)
    adapter = adapt(linear)
    adapter.attach()
    assert not torch.allclose(linear(x), before)
    adapter.detach()
    assert torch.equal(linear(x), before)
    assert "forward" not in linear.__dict__
    adapter.detach()


def test_two_adapters_on_one_layer_add_up_and_come_off_in_turn(linear):
    x = torch.randn(3, 4)
    first = adapt(linear, seed=1)
    once = linear(x)
    second = adapt(linear, seed=2)
    change = F.linear(x, first.factors().delta() + second.factors().delta())
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias) + change)
    second.detach()
    assert torch.equal(linear(x), once)


def test_start_values_add_nothing_and_follow_the_generator(linear):
    adapters = [LoraAdapter("lora", linear, 4, 1.0) for _ in range(3)]
    for adapter, seed in zip(adapters, (5, 5, 6), strict=True):
        adapter.reset(torch.Generator().manual_seed(seed))
    downs = [adapter.lora_down.weight for adapter in adapters]
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])
    assert downs[0].abs().max() <= 0.5  # 1 / sqrt(4 inputs)
    assert not adapters[0].lora_up.weight.any()


def test_multiplier_and_switch(linear):
    x = torch.randn(3, 4)
    base = linear(x)
    adapter = adapt(linear)
    full = linear(x) - base
    adapter.multiplier = 0.5
    torch.testing.assert_close(linear(x) - base, full / 2)
    adapter.enabled = False
    assert torch.equal(linear(x), base)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_applied_equals_merged(name, request):
    layer = request.getfixturevalue(name)
    x = torch.randn(2, 3, 6, 7) if name == "conv" else torch.randn(2, 3, 4)
    base = layer(x)
    adapter = adapt(layer, multiplier=0.8)
    applied = layer(x)
    adapter.detach()
    adapter.merge()
    assert not torch.allclose(applied, base, atol=0.1)
    torch.testing.assert_close(layer(x), applied)


def test_merging_into_half_precision_rounds_once():
    layer = nn.Linear(4, 6, dtype=torch.bfloat16)
    exact = layer.weight.float()
    adapter = adapt(layer)
    adapter.detach()
    adapter.merge()
    assert torch.equal(layer.weight, (exact + adapter.factors().delta()).to(torch.bfloat16))


def test_base_weights_that_train_get_gradients(linear):
    linear.requires_grad_(True)
    adapter = adapt(linear)
    x = torch.randn(3, 4)
    linear(x).sum().backward()
    assert linear.weight.grad is not None
    assert adapter.lora_up.weight.grad is not None
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight + adapter.factors().delta(), linear.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv_gradients_reach_the_factors_under_autocast(conv, dtype):
    adapter = adapt(conv)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = conv(torch.randn(2, 3, 6, 7))
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.parameters())


# Dropout


def addition(adapter, layer, x):
    """What the adapter adds, in training mode."""
    adapter.train()
    with torch.no_grad():
        return layer(x) - adapter.base_forward(x)


def test_dropouts_act_in_training_only(linear):
    x = torch.randn(3, 4)
    adapt(linear, dropouts=Dropouts(neuron=0.5, rank=0.5, module=0.5)).eval()
    expected = linear(x)
    assert all(torch.equal(linear(x), expected) for _ in range(5))


@pytest.mark.parametrize("kind", ["neuron", "rank", "module"])
def test_dropout_keeps_the_mean(kind, linear):
    torch.manual_seed(3)
    x = torch.randn(1, 4).expand(4000, 1, 4)
    adapter = adapt(linear, dropouts=Dropouts(**{kind: 0.25}))
    whole = F.linear(x[0], adapter.factors().delta())
    if kind == "module":
        added = torch.stack([addition(adapter, linear, x[:1]) for _ in range(800)])
        is_zero = (added.abs() < 1e-6).flatten(1).all(1)
        assert 0.2 < is_zero.float().mean() < 0.3
        torch.testing.assert_close(added[~is_zero][0, 0], whole, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(addition(adapter, linear, x).mean(0), whole, atol=0.1, rtol=0.1)


def test_rank_dropout_is_drawn_for_each_sample(linear):
    torch.manual_seed(3)
    x = torch.randn(1, 1, 4).expand(64, 5, 4)
    added = addition(adapt(linear, dropouts=Dropouts(rank=0.5)), linear, x)
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-6)
    assert len({tuple(row) for row in added[:, 0].mul(1000).round().tolist()}) == 4  # two ranks, in or out


def test_rank_dropout_of_a_convolution(conv):
    torch.manual_seed(3)
    x = torch.randn(1, 3, 6, 7).expand(64, 3, 6, 7)
    added = addition(adapt(conv, dropouts=Dropouts(rank=0.5)), conv, x)
    assert len({tuple(row) for row in added[:, :, 1, 1].mul(1000).round().tolist()}) == 4


def test_dropped_ranks_get_no_gradient(linear):
    torch.manual_seed(0)
    adapter = adapt(linear, rank=8, dropouts=Dropouts(rank=0.5)).train()
    linear(torch.randn(1, 4)).sum().backward()
    is_idle = ~adapter.lora_down.weight.grad.any(1)
    assert 0 < is_idle.sum() < 8
    assert not adapter.lora_up.weight.grad[:, is_idle].any()


def test_recomputation_draws_the_same_dropout(linear):
    from torch.utils.checkpoint import checkpoint

    adapter = adapt(linear, dropouts=Dropouts(neuron=0.3, rank=0.3, module=0.3)).train()
    x = torch.randn(3, 4)
    results = []
    for run in (lambda: linear(x), lambda: checkpoint(linear, x, use_reentrant=False)):
        torch.manual_seed(4)
        adapter.zero_grad()
        run().square().sum().backward()
        results.append([p.grad.clone() if p.grad is not None else None for p in adapter.parameters()])
    torch.testing.assert_close(results[0], results[1])


# Parts


def test_parts_are_independent_low_rank_additions(linear):
    adapter = adapt(linear, rank=2, alpha=3.0, num_parts=3)
    x = torch.randn(5, 4)
    parts = [
        F.linear(F.linear(x, down.weight), up.weight) * 1.5
        for down, up in zip(adapter.lora_down, adapter.lora_up, strict=True)
    ]
    torch.testing.assert_close(linear(x) - adapter.base_forward(x), torch.cat(parts, -1))
    names = [f"lora_{kind}.{i}.weight" for kind in ("down", "up") for i in range(3)]
    assert sorted(adapter.state_dict()) == names


def test_parts_are_saved_as_one_pair_of_the_same_strength(linear):
    adapter = adapt(linear, rank=2, alpha=3.0, num_parts=3)
    saved = adapter.factors()
    assert saved.down.shape == (6, 4)
    assert saved.up.shape == (6, 6)
    assert saved.alpha == 9.0
    assert saved.scale == adapter.scale
    assert is_block_diagonal(saved.up, 3)
    other = LoraAdapter("lora", linear, 2, 3.0, num_parts=3)
    other.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), adapter.parameters(), strict=True))


def test_one_pair_loads_into_parts_without_a_change(linear):
    whole = Factors(torch.randn(2, 4), torch.randn(6, 2), 3.0)
    adapter = LoraAdapter("lora", linear, 2, 3.0, num_parts=3)
    adapter.load(whole)
    torch.testing.assert_close(adapter.factors().delta(), whole.delta())


def test_parts_take_gradients_and_every_dropout(linear):
    torch.manual_seed(0)
    adapter = adapt(linear, num_parts=3, dropouts=Dropouts(neuron=0.1, rank=0.1, module=0.1)).train()
    for _ in range(20):
        linear(torch.randn(4, 3, 4, requires_grad=True)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in adapter.parameters())


# Norm


@pytest.mark.parametrize("num_parts", [1, 3])
def test_norm_is_that_of_the_change(linear, num_parts):
    adapter = adapt(linear, alpha=3.0, num_parts=num_parts)
    torch.testing.assert_close(adapter.norm(), adapter.factors().delta().norm())
    adapter.shrink(torch.tensor(0.25))
    torch.testing.assert_close(adapter.norm(), adapter.factors().delta().norm())


def test_norm_of_a_convolution(conv):
    adapter = adapt(conv)
    before = adapter.factors().delta()
    torch.testing.assert_close(adapter.norm(), before.norm())
    adapter.shrink(torch.tensor(0.25))
    torch.testing.assert_close(adapter.factors().delta(), before * 0.25)


def test_wrong_shapes_are_refused(linear):
    with pytest.raises(ValueError, match="6 outputs"):
        LoraAdapter("lora", linear, 2, 1.0, num_parts=4)
    with pytest.raises(ValueError, match="one part"):
        LoraAdapter("lora", nn.Conv2d(4, 4, 3, groups=2), 2, 1.0)


def test_compiled_graph_is_whole_and_gives_the_same(linear):
    adapter = adapt(linear)
    x = torch.randn(3, 4, requires_grad=True)
    compiled = torch.compile(nn.Sequential(linear, nn.GELU()), backend="aot_eager", fullgraph=True)
    expected = F.gelu(linear(x))
    torch.testing.assert_close(compiled(x), expected)
    grads = [torch.autograd.grad(y.sum(), [x, *adapter.parameters()]) for y in (compiled(x), expected)]
    torch.testing.assert_close(*grads)
