import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from networks.adapters import LoraAdapter
from networks.lora_linear import is_plain_frozen, lora_linear

SCALE = 0.7


def make(dtype=torch.float64, base_dtype=None, bias=True):
    torch.manual_seed(0)
    weight, down, up = torch.randn(5, 4), torch.randn(3, 4), torch.randn(5, 3)
    base = [weight.to(base_dtype or dtype), torch.randn(5).to(base_dtype or dtype) if bias else None]
    return base, [factor.to(dtype).requires_grad_() for factor in (down, up)]


def written_out(x, weight, bias, down, up):
    return F.linear(x, weight, bias) + F.linear(F.linear(x, down), up) * SCALE


@pytest.mark.parametrize("shape", [(4,), (6, 4), (2, 3, 4), (2, 2, 2, 4), (0, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_equal_separate_operations(shape, bias):
    base, factors = make(bias=bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    fused, plain = lora_linear(x, *base, *factors, SCALE), written_out(x, *base, *factors)
    torch.testing.assert_close(fused, plain)
    grad = torch.randn_like(plain)
    torch.testing.assert_close(
        torch.autograd.grad(fused, [x, *factors], grad), torch.autograd.grad(plain, [x, *factors], grad)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked):
    base, factors = make()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 3, 3, dtype=torch.float64) if masked else None
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, *base, a, b, SCALE, mask), (x, *factors))


def test_is_one_node_that_keeps_the_input_and_rank_sized_tensors():
    kept = []
    base, factors = make(torch.float32)
    x = torch.randn(100, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = lora_linear(x, *base, *factors, SCALE)
    assert type(out.grad_fn).__name__ == "_LoraLinearBackward"
    assert [next_node and type(next_node).__name__ for next_node, _ in out.grad_fn.next_functions if next_node] == [
        "AccumulateGrad",
        "AccumulateGrad",
    ]
    new = [t for t in kept if t.data_ptr() not in {t.data_ptr() for t in (x, base[0], *factors)}]
    assert [tuple(t.shape) for t in new] == [(100, 3)]


def test_no_gradient_where_none_is_needed():
    base, factors = make()
    x = torch.randn(6, 4, dtype=torch.float64)
    lora_linear(x, *base, *factors, SCALE).sum().backward()
    assert x.grad is None
    assert base[0].grad is None
    factors[0].requires_grad_(False)
    x.requires_grad_()
    lora_linear(x, *base, *factors, SCALE).sum().backward()
    assert x.grad is not None


def test_a_second_derivative_is_an_error():
    base, factors = make()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(lora_linear(x, *base, *factors, SCALE).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_grad_nothing_is_recorded():
    base, factors = make()
    with torch.no_grad():
        assert lora_linear(torch.randn(6, 4, dtype=torch.float64), *base, *factors, SCALE).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_dtype_and_leaves_factor_gradients_in_theirs(dtype, base_dtype):
    base, factors = make(torch.float32, base_dtype)
    x = torch.randn(6, 4, requires_grad=True)
    with torch.autocast("cpu", dtype):
        fused, plain = lora_linear(x, *base, *factors, SCALE), written_out(x, *base, *factors)
    assert fused.dtype == plain.dtype == dtype
    torch.testing.assert_close(fused, plain, atol=0.1, rtol=0.02)
    grads = torch.autograd.grad(fused.float().square().sum(), [x, *factors])
    expected = torch.autograd.grad(plain.float().square().sum(), [x, *factors])
    for grad, other in zip(grads, expected, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.bfloat16])
def test_bf16_base_without_autocast(factor_dtype):
    base, factors = make(factor_dtype, torch.bfloat16)
    x = torch.randn(6, 4, dtype=torch.bfloat16)
    out = lora_linear(x, *base, *factors, SCALE)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert [factor.grad.dtype for factor in factors] == [factor_dtype] * 2


def test_recomputation_gives_the_same_gradients():
    layer = nn.Linear(4, 4).requires_grad_(False)
    adapter = LoraAdapter("a", layer, 2, 1.0)
    adapter.reset()
    nn.init.normal_(adapter.lora_up.weight)
    adapter.attach()
    x = torch.randn(3, 4)

    def gradients(run):
        adapter.zero_grad()
        run(lambda x: layer(torch.tanh(layer(x))), x).square().sum().backward()
        return [p.grad.clone() for p in adapter.parameters()]

    direct = gradients(lambda f, x: f(x))
    torch.testing.assert_close(gradients(lambda f, x: checkpoint(f, x, use_reentrant=False)), direct)


def test_trained_or_special_layers_are_not_plain():
    class Special(nn.Linear):
        pass

    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert is_plain_frozen(frozen)
    assert not is_plain_frozen(nn.Linear(2, 2))
    assert not is_plain_frozen(Special(2, 2).requires_grad_(False))
    frozen.weight = nn.Parameter(frozen.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert not is_plain_frozen(frozen)
