"""Linear layers in 8 and 4 bits: they are plain layers with the widened weights, and keep nothing wide."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from library.memory.quantize import E4M3, E5M2, FP8, INT8, NF4, keep_fp8, quantize, widen
from library.memory.quantized_layers import quantize_layers, replace_layers
from library.memory.quantized_linear import QuantizedLinear
from library.models.mmdit import MMDiT, MMDiTConfig

OUT, IN = 48, 64
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FORWARD_ERROR = {INT8: 0.02, FP8: 0.08, NF4: 0.2}  # of a network of random weights, which enlarges errors


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def needs(form):
    if form == NF4:
        pytest.importorskip("bitsandbytes")
    return form


@pytest.fixture(params=[INT8, FP8, E4M3, E5M2, NF4])
def form(request):
    return needs(request.param)


def quantized(form, dtype=torch.float32, has_bias=True):
    weight = draw(OUT, IN) / 8
    layer = QuantizedLinear(IN, OUT, form, dtype, has_bias=has_bias)
    if form in (E4M3, E5M2):
        stored = weight.to({E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}[form])
        layer.weight, layer.scale, _ = keep_fp8(stored, torch.tensor(0.7))
    else:
        layer.weight, layer.scale = quantize(weight, form)
    if has_bias:
        layer.bias.data.copy_(draw(OUT, seed=1))
    return layer


def widened(layer, dtype):
    """A plain layer with the numbers that a quantised one stands for."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype)
    plain.weight.data = widen(layer.weight, layer.scale, layer.form, dtype)
    if layer.bias is not None:
        plain.bias.data = layer.bias.data.clone()
    return plain.requires_grad_(False)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradient_are_those_of_the_widened_weights(form, dtype, has_bias):
    layer = quantized(form, dtype, has_bias)
    plain = widened(layer, dtype)
    x = draw(2, 5, IN, seed=2, dtype=dtype).requires_grad_()
    found, expected = layer(x), plain(x)
    assert torch.equal(found, expected)
    grad = draw(2, 5, OUT, seed=3, dtype=dtype)
    torch.testing.assert_close(torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad))


def test_under_autocast_it_computes_in_its_dtype(form):
    layer = quantized(form, torch.bfloat16)
    x = draw(3, IN, seed=2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(x), widened(layer, torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert torch.autograd.grad(found.float().sum(), x)[0].dtype == torch.float32


def test_for_the_backward_pass_it_keeps_its_own_buffers_and_nothing_else(form):
    layer, kept = quantized(form), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        layer(draw(3, IN).requires_grad_())
    assert kept == [layer.weight.data_ptr(), layer.scale.data_ptr()]


def test_all_that_it_holds_are_parameters_and_buffers_and_these_are_read_when_they_are_used(form):
    layer, other = quantized(form), quantized(form)
    assert not [name for name, value in vars(layer).items() if isinstance(value, torch.Tensor)]
    x = draw(3, IN)
    before = layer(x)
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.data = torch.ones_like(tensor)
    assert not torch.equal(other(x), before)
    for tensor, true in zip(
        (*other.parameters(), *other.buffers()), (*layer.parameters(), *layer.buffers()), strict=True
    ):
        tensor.data = true.clone()
    assert torch.equal(other(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_a_model_leaves_bits_and_scales_alone(form, dtype):
    model = nn.Sequential(quantized(form), nn.Linear(OUT, 2))
    bits, scale = model[0].weight.clone(), model[0].scale.clone()
    model.to(dtype)
    assert (model[0].weight.dtype, model[0].scale.dtype, model[0].bias.dtype) == (bits.dtype, torch.float32, dtype)
    assert torch.equal(model[0].weight, bits)
    assert torch.equal(model[0].scale, scale)


@pytest.mark.parametrize("form", [E4M3, NF4])
def test_compiled_it_is_one_graph_and_the_same_numbers(form):
    layer = quantized(needs(form))
    x = draw(3, IN).requires_grad_()
    compiled = torch.compile(nn.Sequential(layer, nn.GELU()), backend="aot_eager", fullgraph=True)
    found, expected = compiled(x), F.gelu(layer(x))
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad(output.sum(), x)[0] for output in (found, expected)]
    torch.testing.assert_close(*grads)


def test_replaced_layers_ask_for_their_bits_and_scales_and_nothing_else_changes():
    with torch.device("meta"):
        first, second = nn.Linear(4, 3), nn.Linear(3, 2, bias=False)
        model = nn.Sequential(first, nn.LayerNorm(3), nn.ModuleList([second]))
    before = set(model.state_dict())
    names = replace_layers(model, INT8, lambda name: torch.float16 if name == "0.weight" else torch.float32)
    assert names == {"0.weight", "2.0.weight"}
    assert set(model.state_dict()) == before | {"0.scale", "2.0.scale"}
    assert (model[0].dtype, model[2][0].dtype) == (torch.float16, torch.float32)
    assert model[2][0].bias is None


def mmdit():
    """A denoiser whose blocks count: modulations as large as what they modulate."""
    torch.manual_seed(0)
    config = MMDiTConfig(
        depth=3, num_heads=2, qk_norm=True, context_dim=64, pooled_dim=64, position_side=8, dual_attention=(0, 1)
    )
    model = MMDiT(config).requires_grad_(False).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(std=layer.in_features**-0.5)
        if name.endswith("adaLN_modulation.1"):
            layer.bias.normal_(std=0.5)
    return model


@pytest.mark.parametrize("form", [INT8, FP8, NF4])
@torch.no_grad()
def test_what_the_denoiser_says_is_near_what_it_says_in_float32(form):
    needs(form)
    inputs = (draw(2, 16, 16, 16), torch.tensor([300.0, 800.0]), draw(2, 20, 64), draw(2, 64))
    model = mmdit()
    expected = model(*inputs)
    narrow = copy.deepcopy(model)
    quantize_layers(narrow.joint_blocks, form, torch.float32, "cpu")
    error = ((narrow(*inputs) - expected).norm() / expected.norm()).item()
    assert 0.001 < error < FORWARD_ERROR[form]
