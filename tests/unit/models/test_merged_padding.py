"""Merged padding: the same outputs and gradients as with all its rows, in float64 to 1e-10."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.models import merged_padding
from library.models.merged_padding import ROWS, merging, pays
from library.models.mmdit import MMDiT, MMDiTConfig

SIZES = {"num_heads": 2, "head_dim": 8, "context_dim": 24, "pooled_dim": 20, "frequencies": 16, "position_side": 8}
CONFIGS = {
    "medium": MMDiTConfig(depth=2, **SIZES),
    "5-medium": MMDiTConfig(depth=3, qk_norm=True, dual_attention=(0, 1), **SIZES),
}
LENGTH = 130
USED = {
    "several lengths": [(4, 50), (3, 7), (77, 0)],
    "one sample": [(5, 9)],
    "nothing is left": [(0, 0)],
    "dropped beside undropped": [(0, 0), (12, 30), (0, 20)],
    "one row of padding": [(64, 31), (1, 3)],
}


def used(*numbers):
    """Rows of CLIP before 77, then those of T5. Shape [B, LENGTH]."""
    clip, t5 = torch.arange(77), torch.arange(LENGTH - 77)
    return torch.stack([torch.cat([clip < first, t5 < second]) for first, second in numbers])


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(3)
    return MMDiT(CONFIGS[request.param]).double()


def inputs(is_used):
    draw = torch.Generator().manual_seed(4)
    batch = len(is_used)
    latents = torch.randn(batch, 16, 8, 6, generator=draw, dtype=torch.float64)
    context = torch.randn(batch, LENGTH, 24, generator=draw, dtype=torch.float64) * is_used[:, :, None]
    pooled = torch.randn(batch, 20, generator=draw, dtype=torch.float64)
    return latents, torch.linspace(100.3, 900.7, batch), context, pooled


def merged(latents, timesteps, context, pooled, is_used):
    found = merging(is_used)
    arguments = {"context_bias": found.bias_for(context)}
    return (latents, timesteps, found.context(context), pooled), arguments


def gradients(model, arguments, named):
    """Output, and gradients of all that can train, the inputs' among them."""
    leaves = [tensor.clone().requires_grad_(index in (0, 3)) for index, tensor in enumerate(arguments)]
    model.zero_grad()
    output = model(*leaves, **named)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    (output * weight).sum().backward()
    own = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return {"output": output.detach(), "latents": leaves[0].grad, "pooled": leaves[3].grad, **own}


@pytest.mark.parametrize("numbers", USED.values(), ids=USED)
def test_outputs_and_all_gradients_equal_those_with_all_rows(model, numbers):
    is_used = used(*numbers)
    whole = inputs(is_used)
    short, named = merged(*whole, is_used)
    assert short[2].shape[1] < LENGTH
    expected, found = gradients(model, whole, {}), gradients(model, short, named)
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-10 * max(1, tensor.abs().max()), name


def test_text_that_trains_gets_the_same_gradients(model):
    is_used = used((4, 50), (3, 7))
    latents, timesteps, context, pooled = inputs(is_used)
    found = []
    for is_merged in (False, True):
        text = context.clone().requires_grad_(True)
        masked = text * is_used[:, :, None]
        arguments, named = (latents, timesteps, masked, pooled), {}
        if is_merged:
            arguments, named = merged(*arguments, is_used)
        model(*arguments, **named).square().sum().backward()
        found.append(text.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_leaving_padding_out_changes_the_output(model):
    is_used = used((20, 40))
    latents, timesteps, context, pooled = inputs(is_used)
    whole = model(latents, timesteps, context, pooled)
    trimmed = model(latents, timesteps, context[:, is_used[0]], pooled)
    assert (trimmed - whole).abs().max() > 1e-3 * whole.abs().max()


@pytest.mark.parametrize("merges", [False, True])
def test_half_precision_is_as_near_with_merged_rows_as_with_all(model, merges):
    is_used = used((4, 20), (3, 7))
    exact = model(*inputs(is_used))
    arguments, named = inputs(is_used), {}
    if merges:
        arguments, named = merged(*arguments, is_used)
    single = {name: tensor.float() for name, tensor in named.items()}
    with torch.autocast("cpu", torch.bfloat16):
        output = model.float()(*(tensor.float() for tensor in arguments), **single)
    assert (output.double() - exact).norm() < 0.01 * exact.norm()


def test_samples_that_fill_the_context_are_left_as_they_are():
    assert merging(used((77, LENGTH - 77), (3, 7))) is None
    assert merging(used((77, 50))) is None  # a multiple of ROWS would be longer


@given(st.lists(st.tuples(st.integers(0, 77), st.integers(0, 256)), min_size=1, max_size=5))
def test_rows_that_stay_stand_for_all(numbers):
    places = torch.arange(77), torch.arange(256)
    is_used = torch.stack([torch.cat([p < n for p, n in zip(places, both, strict=True)]) for both in numbers])
    found = merging(is_used)
    if found is None:
        return
    assert found.rows.shape == found.bias.shape
    assert found.rows.shape[1] % ROWS == 0 and found.rows.shape[1] < 333
    for rows, bias, own in zip(found.rows, found.bias, is_used, strict=True):
        kept = own[rows]
        assert len(set(rows.tolist())) == len(rows)
        assert kept.sum() == own.sum() and (bias[kept] == 0).all() and (bias >= 0).all()
        assert bias[~kept].exp().sum().item() == pytest.approx((~own).sum().item(), rel=1e-12)
        halves = bias.bfloat16().double()
        assert halves[~kept].exp().sum().item() == pytest.approx((~own).sum().item(), rel=1e-3)


def test_bias_is_as_precise_as_the_context_and_never_less_than_single():
    found = merging(used((4, 9)))
    types = [found.bias_for(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
    assert types == [torch.float32, torch.float64]
    assert math.log(LENGTH - 13) > found.bias.max() > math.log(LENGTH - 13) - 0.5


@pytest.mark.parametrize(("patches", "expected"), [(256, True), (1024, True), (2304, False), (4096, False)])
def test_a_gpu_gets_merged_rows_only_where_many_tokens_go(patches, expected):
    places = torch.arange(77), torch.arange(256)
    found = merging(torch.cat([place < 32 for place in places])[None])
    assert pays(found, 333, patches, torch.device("cuda")) is expected
    assert pays(found, 333, patches, torch.device("cpu"))
    assert merged_padding.ROWS % 16 == 0  # of keys in the kernels that take a bias
