"""Convolutions in 8 bits: they are plain ones with the widened weights, and keep nothing wide."""

import pytest
import torch
from torch import nn

from library.memory.quantize import widen
from library.memory.quantized_conv import QuantizedConv2d
from library.memory.quantized_layers import quantize_layers
from networks.adapters import LoraAdapter
from networks.oft_adapter import OftAdapter

SHAPE = 2, 16, 7, 9
SETTINGS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": (3, 1), "dilation": (2, 1), "groups": 2},
]


@pytest.fixture(params=["int8", "fp8"])
def form(request):
    return request.param


def pair(form, dtype=torch.float32, settings=SETTINGS[1]):
    """A convolution in fewer bits, and a plain one with the same numbers."""
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 24, **settings).requires_grad_(False)
    model = nn.Sequential(plain)
    quantize_layers(model, form, dtype, "cpu")
    narrow = model[0]
    assert isinstance(narrow, QuantizedConv2d)
    widened = widen(narrow.weight, narrow.scale, form, dtype).view(plain.weight.shape)
    assert 0 < (widened - plain.weight).norm() < 0.05 * plain.weight.norm()
    plain.to(dtype).weight.data = widened
    return narrow, plain


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("settings", SETTINGS, ids=["usual", "halves", "1x1", "groups"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_widened_weights(form, dtype, settings):
    narrow, plain = pair(form, dtype, settings)
    x = draw(*SHAPE, dtype=dtype).requires_grad_()
    found, expected = narrow(x), plain(x)
    assert torch.equal(found, expected)
    grad = draw(*found.shape, seed=1, dtype=dtype)
    torch.testing.assert_close(torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad))


def test_for_the_backward_pass_it_keeps_its_own_buffers_and_nothing_else(form):
    (narrow, _), kept = pair(form), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        narrow(draw(*SHAPE).requires_grad_())
    assert kept == [narrow.weight.data_ptr(), narrow.scale.data_ptr()]


def test_casting_a_model_leaves_bits_and_scales_alone(form):
    narrow, _ = pair(form)
    bits, scale = narrow.weight.clone(), narrow.scale.clone()
    nn.Sequential(narrow).to(torch.float16)
    assert (narrow.weight.dtype, narrow.scale.dtype, narrow.bias.dtype) == (bits.dtype, torch.float32, torch.float16)
    assert torch.equal(narrow.weight, bits) and torch.equal(narrow.scale, scale)


def test_compiled_it_is_one_graph_and_the_same_numbers():
    narrow, _ = pair("fp8")
    x = draw(*SHAPE).requires_grad_()
    found = torch.compile(nn.Sequential(narrow, nn.SiLU()), backend="aot_eager", fullgraph=True)(x)
    expected = nn.functional.silu(narrow(x))
    assert torch.equal(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(output.sum(), x)[0] for output in (found, expected)))


@pytest.mark.parametrize("adapter", [LoraAdapter, OftAdapter])
def test_an_adapter_gives_and_learns_what_it_does_over_the_widened_weights(form, adapter):
    x, results = draw(*SHAPE).requires_grad_(), []
    for layer in pair(form):
        made = adapter("it", layer, 2, 2.0)
        for seed, parameter in enumerate(made.parameters()):
            parameter.data.copy_(draw(*parameter.shape, seed=seed) / 8)
        made.attach()
        output = layer(x)
        results.append((output, torch.autograd.grad(output.square().sum(), [x, *made.parameters()])))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_a_convolution_with_other_padding_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, padding="same"))
    before = list(model)
    quantize_layers(model, "int8", torch.float32, "cpu")
    assert list(model) == before


def test_it_keeps_8_bits_where_linear_layers_keep_4():
    pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(64, 64))
    quantize_layers(model, "nf4", torch.float32, "cpu")
    assert [(layer.form, layer.weight.dtype) for layer in model] == [("int8", torch.int8), ("nf4", torch.uint8)]
