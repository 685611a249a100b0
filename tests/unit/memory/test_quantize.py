"""Matrices in 8 and 4 bits: how far they are from the wide ones, and what stays exact."""

import pytest
import torch

from library.memory.quantize import E4M3, E5M2, FP8, INT8, NF4, empty_state, keep_fp8, quantize, widen

ERROR = {INT8: 0.012, FP8: 0.03, NF4: 0.1}  # of weights that are spread like a bell, relative, worst of 64 rows
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bell(rows=64, columns=512):
    """Rows of very different sizes, as weights of T5 have them."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 1, rows)[:, None]
    return torch.randn(rows, columns, generator=draw) * sizes


def relative(found, expected):
    return ((found.float() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.fixture(params=[INT8, FP8, NF4])
def bits(request):
    if request.param == NF4:
        pytest.importorskip("bitsandbytes")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
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


def test_weights_of_a_whole_matrix_are_kept_to_1_3_and_10_percent(bits):
    weight = torch.randn(256, 1536, generator=torch.Generator().manual_seed(0))
    error = (widen(*quantize(weight, bits), bits, torch.float32) - weight).norm() / weight.norm()
    assert error < {INT8: 0.01, FP8: 0.03, NF4: 0.1}[bits]


@pytest.mark.parametrize("bits", [INT8, FP8])
def test_rows_of_zeros_and_of_huge_numbers_are_kept(bits):
    weight = torch.tensor([[0.0, 0.0], [3e38, -3e38], [1e-30, 0.0]])
    wide = widen(*quantize(weight, bits), bits, torch.float32)
    torch.testing.assert_close(wide, weight, rtol=0.07, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("unit", [None, torch.tensor(0.0137), torch.linspace(0.001, 2, 64)])
def test_what_a_file_has_in_fp8_keeps_its_bits_and_means_the_same(stored, unit, dtype):
    content = (bell() / 4).to(stored)
    bits, scale, form = keep_fp8(content, unit)
    assert form == {torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2}[stored]
    assert torch.equal(bits.view(stored).float(), content.float())
    exact = content.float() if unit is None else content.float() * unit.reshape(-1, 1)
    assert torch.equal(widen(bits, scale, form, dtype).to(torch.float32), exact.to(dtype).float())


def test_what_is_kept_has_the_form_that_is_promised(bits):
    kept, promised = quantize(bell(), bits), empty_state(64, 512, bits)
    assert [(t.shape, t.dtype) for t in kept] == [(t.shape, t.dtype) for t in promised]
    assert sum(t.numel() * t.itemsize for t in kept) == {INT8: 33024, FP8: 33024, NF4: 18432}[bits]  # of 65536 in fp16


def test_rows_whose_length_is_no_multiple_of_64_are_fine_in_4_bits():
    pytest.importorskip("bitsandbytes")
    weight = bell(6, 10)
    kept = quantize(weight, NF4)
    assert [tuple(t.shape) for t in kept] == [tuple(t.shape) for t in empty_state(6, 10, NF4)] == [(6, 5), (1,)]
    assert (widen(*kept, NF4, torch.float64) - weight).norm() < 0.2 * weight.norm()


def test_a_large_matrix_which_is_rounded_in_pieces_keeps_what_small_ones_keep(bits):
    weight, unit = bell(200, 8192), torch.linspace(0.001, 2, 200)
    units = (unit,) if bits == FP8 else ()
    whole = widen(*quantize(weight, bits, *units), bits, torch.float32)
    for row in (0, 127, 128, 199):
        alone = quantize(weight[row : row + 1], bits, *(unit[row : row + 1] for _ in units))
        assert torch.equal(widen(*alone, bits, torch.float32)[0], whole[row])
