"""LoRA over weights in fewer bits: exactly that over the widened weights, and nothing wide is kept."""

import pytest
import torch
from torch import nn

from library.memory.quantize import widen
from library.memory.quantized_layers import quantize_layers
from networks.adapters import Dropouts, LoraAdapter
from networks.lora_linear import frozen_weight

IN, OUT, RANK = 64, 48, 3


@pytest.fixture(params=["int8", "fp8", "nf4"])
def form(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    return request.param


def pair(form, dtype):
    """A layer in fewer bits and a plain one with the same numbers, each with the same adapter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT))
    quantize_layers(model, form, dtype, "cpu")
    plain = nn.Linear(IN, OUT, dtype=dtype).requires_grad_(False)
    plain.weight.copy_(widen(model[0].weight, model[0].scale, form, dtype))
    plain.bias.copy_(model[0].bias)
    return [(layer, adapter(layer, dtype)) for layer in (model[0], plain)]


def adapter(layer, dtype):
    made = LoraAdapter("lora", layer, RANK, 2.0, num_parts=2, dropouts=Dropouts(neuron=0.3)).to(dtype)
    draw = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / 8)
    made.attach()
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_all_gradients_are_those_over_the_widened_weights(form, dtype):
    x = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    outputs, gradients = [], []
    for layer, lora in pair(form, dtype):
        torch.manual_seed(3)  # of dropout
        outputs.append(layer(x))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [x, *lora.parameters()]))
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)


def test_output_under_autocast_is_that_over_the_widened_weights(form):
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(2))
    outputs = []
    for layer, lora in pair(form, torch.bfloat16):
        lora.eval().float()
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(layer(x))
    assert torch.equal(*outputs)


def test_it_is_one_node_that_keeps_the_bits_themselves_and_nothing_wide(form):
    (layer, lora), _ = pair(form, torch.float32)
    lora.eval()
    kept = []
    x = torch.randn(100, IN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    assert type(out.grad_fn).__name__ == "_LoraLinearBackward"
    places = {tensor.data_ptr() for tensor in kept}
    assert {layer.weight.data_ptr(), layer.scale.data_ptr(), x.data_ptr()} <= places
    assert not [tensor for tensor in kept if tensor.is_floating_point() and tuple(tensor.shape) == (OUT, IN)]
    assert len(places) == 6  # and the rank-sized product and both factors


def test_adapters_know_a_weight_in_fewer_bits_by_what_its_layer_says(form):
    (layer, _), (plain, _) = pair(form, torch.float32)
    bits, scale, make = frozen_weight(layer)
    assert bits is layer.weight
    assert torch.equal(make(bits, scale, torch.float32), plain.weight)
    assert frozen_weight(plain) == (plain.weight, None, None)
    assert frozen_weight(nn.Linear(2, 2)) is None


def test_merging_into_a_weight_in_fewer_bits_is_refused(form):
    (layer, lora), _ = pair(form, torch.float32)
    lora.detach()
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="only be merged into a weight that is not in fewer bits"):
        lora.merge()
    assert torch.equal(layer.weight, before)
