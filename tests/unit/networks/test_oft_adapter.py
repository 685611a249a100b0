import pytest
import torch
from torch import nn
from torch.nn import functional as F

from library.memory.quantize import widen
from library.memory.quantized_layers import quantize_layers
from networks.oft_adapter import OftAdapter, Rotation

LAYERS = {
    "linear": lambda: nn.Linear(6, 12),
    "no bias": lambda: nn.Linear(6, 12, bias=False),
    "conv": lambda: nn.Conv2d(3, 12, 3, stride=2, padding=1),
}
INPUTS = {"linear": (2, 4, 6), "no bias": (2, 4, 6), "conv": (2, 3, 5, 4)}
GROUPS = 3


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def adapt(kind, alpha=0.5, size=0.3, **options):
    torch.manual_seed(0)
    adapter = OftAdapter("oft", LAYERS[kind]().double().requires_grad_(False), GROUPS, alpha, **options).double()
    nn.init.normal_(adapter.oft_blocks, std=size)
    adapter.attach()
    return adapter


def plain_rotations(blocks, limit):
    """The formula with plain inverses. Shape [groups, n, n]."""
    skew = blocks - blocks.mT
    norm = skew.square().sum().sqrt()
    skew = skew * ((min(norm, limit) + 1e-8) / (norm + 1e-8))
    eye = torch.eye(blocks.shape[1], dtype=blocks.dtype)
    return torch.stack([(eye + q) @ torch.inverse(eye - q) for q in skew])


def plain_weight(adapter, multiplier=1.0, weight=None):
    """Each group of output rows turned."""
    weight, (groups, n, _) = adapter.target.weight if weight is None else weight, adapter.oft_blocks.shape
    eye = torch.eye(n, dtype=weight.dtype)
    rotations = plain_rotations(adapter.oft_blocks, adapter.alpha * groups * n)
    rows = weight.flatten(1).chunk(groups)
    turned = [(multiplier * (r - eye) + eye).T @ row for r, row in zip(rotations, rows, strict=True)]
    return torch.cat(turned).reshape(weight.shape)


def with_weight(layer, weight, x):
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return F.linear(x, weight, layer.bias)


@pytest.mark.parametrize("alpha", [0.5, 0.01], ids=["free", "limited"])
@pytest.mark.parametrize("multiplier", [1.0, -0.4])
def test_layer_gives_what_the_turned_weight_gives(kind, alpha, multiplier):
    adapter, x = adapt(kind, alpha, multiplier=multiplier), torch.randn(INPUTS[kind], dtype=torch.float64)
    output = adapter.target(x)
    base = adapter.base_forward(x)
    weight = plain_weight(adapter, multiplier)
    torch.testing.assert_close(output, with_weight(adapter.target, weight, x))
    assert (output - base).abs().max() > 0.01
    (gradient,) = torch.autograd.grad(output.square().sum(), adapter.oft_blocks)
    (expected,) = torch.autograd.grad(with_weight(adapter.target, weight, x).square().sum(), adapter.oft_blocks)
    torch.testing.assert_close(gradient, expected)
    adapter.detach()
    adapter.merge()
    torch.testing.assert_close(adapter.target.weight, weight)


def test_zeros_are_the_layer_itself_and_can_be_trained(kind):
    adapter, x = adapt(kind), torch.randn(INPUTS[kind], dtype=torch.float64)
    adapter.reset()
    output = adapter.target(x)
    assert torch.equal(output, adapter.base_forward(x))
    output.square().sum().backward()
    gradient = adapter.oft_blocks.grad
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, -gradient.mT)
    # turning every output of a group alike changes no norm: it is the bias that makes a gradient here
    assert bool(gradient.abs().max() > 1e-9) == (adapter.target.bias is not None)


def test_rotations_are_orthogonal_and_the_limit_holds():
    blocks = torch.randn(GROUPS, 4, 4, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    for alpha in (0.0, 0.5, 0.01):
        turn = Rotation(blocks, alpha).turn() + eye
        torch.testing.assert_close(turn @ turn.mT, eye.expand_as(turn))
        torch.testing.assert_close(torch.linalg.det(turn), torch.ones(GROUPS, dtype=torch.float64))
        skew = torch.linalg.solve(turn + eye, turn - eye)
        assert skew.norm() <= (alpha * 12 or float("inf")) * (1 + 1e-6)
    torch.testing.assert_close(turn, plain_rotations(blocks, 0.12))


def test_switch_and_multiplier_zero_leave_the_layer_alone(kind):
    adapter, x = adapt(kind), torch.randn(INPUTS[kind], dtype=torch.float64)
    for change in ({"enabled": False}, {"enabled": True, "multiplier": 0.0}):
        vars(adapter).update(change)
        assert torch.equal(adapter.target(x), adapter.base_forward(x))
    adapter.detach()
    assert "forward" not in adapter.target.__dict__


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_over_weights_in_fewer_bits_it_is_that_over_the_widened_weights(form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12))
    quantize_layers(model, form, torch.float64, "cpu")
    adapter = OftAdapter("oft", model[0], GROUPS, 0.5).double()
    nn.init.normal_(adapter.oft_blocks, std=0.3)
    adapter.attach()
    x = torch.randn(5, 16, dtype=torch.float64)
    wide = widen(model[0].weight, model[0].scale, form, torch.float64)
    expected = F.linear(x, plain_weight(adapter, weight=wide), model[0].bias)
    torch.testing.assert_close(model(x), expected)
    adapter.detach()
    with pytest.raises(ValueError, match="fewer bits"):
        adapter.merge()


def test_outputs_must_divide_into_the_groups():
    with pytest.raises(ValueError, match="12 outputs cannot be divided into 5"):
        OftAdapter("oft", nn.Linear(6, 12), 5, 1.0)
