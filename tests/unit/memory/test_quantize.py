"""Linear layers in 8 bits: how far they are from the wide ones, and what stays exact."""

import pytest
import torch
from torch import nn

from library.memory.quantize import FP8, INT8, QuantizedLinear, quantize, replace_linears, widen

ERROR = {INT8: 0.012, FP8: 0.03}  # of weights that are spread like a bell, relative
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bell(rows=64, columns=512):
    """Rows of very different sizes, as weights of T5 have them."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 1, rows)[:, None]
    return torch.randn(rows, columns, generator=draw) * sizes


def relative(found, expected):
    return ((found.float() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [INT8, FP8])
def test_every_row_is_kept_to_a_few_percent_whatever_its_size(bits, dtype):
    weight = bell()
    wide = widen(*quantize(weight, bits), bits, dtype)
    assert wide.dtype == dtype
    assert 0 < relative(wide, weight) < ERROR[bits]


@pytest.mark.parametrize("unit", [None, torch.tensor(0.0137), torch.linspace(0.001, 2, 64)])
def test_weights_that_come_in_fp8_stay_as_they_are(unit):
    stored = (bell() / 4).to(torch.float8_e4m3fn).float()
    weight = stored if unit is None else stored * unit.reshape(-1, 1)
    assert torch.equal(widen(*quantize(weight, FP8, unit), FP8, torch.float32), weight)


@pytest.mark.parametrize("bits", [INT8, FP8])
def test_rows_of_zeros_and_of_huge_numbers_are_kept(bits):
    weight = torch.tensor([[0.0, 0.0], [3e38, -3e38], [1e-30, 0.0]])
    wide = widen(*quantize(weight, bits), bits, torch.float32)
    torch.testing.assert_close(wide, weight, rtol=0.07, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [INT8, FP8])
def test_a_layer_computes_with_the_widened_weights(bits, dtype):
    weight, x = bell(), torch.randn(3, 5, 512, generator=torch.Generator().manual_seed(1))
    layer = QuantizedLinear(512, 64, bits, dtype)
    layer.weight, layer.scale = quantize(weight, bits)
    output = layer(x.to(torch.bfloat16))
    expected = x.to(torch.bfloat16).to(dtype) @ widen(layer.weight, layer.scale, bits, dtype).T
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected)


def test_replaced_layers_ask_for_their_bits_and_scales_and_nothing_else_changes():
    with torch.device("meta"):
        first, second = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
        model = nn.Sequential(first, nn.LayerNorm(3), nn.ModuleList([second]))
    before = set(model.state_dict())
    names = replace_linears(model, INT8, lambda name: torch.float16 if name == "0.weight" else torch.float32)
    assert names == {"0.weight", "2.0.weight"}
    assert set(model.state_dict()) == before | {"0.scale", "2.0.scale"}
    assert (model[0].dtype, model[2][0].dtype) == (torch.float16, torch.float32)
