"""Matrices in 8 or 4 bits: rounding them, and the numbers that they stand for.

Forms, by what is kept of a matrix beside its bits:

- "int8": whole numbers from -127 to 127, and a scale for each output row.
- "fp8": float8_e4m3fn, and a scale for each row, a power of two times the unit that the weights are given in, so that
  weights which are stored in fp8 already stay as they are.
- "e4m3", "e5m2": float8_e4m3fn or float8_e5m2 with the scales of a file in fp8, bits and all as they are stored there.
- "nf4": 16 levels that are equally frequent in numbers spread like a bell, and a scale for every 64 numbers, by the
  bitsandbytes package.

The first three take half the memory of fp16, in plain torch, so that they run wherever torch does; nf4 takes 28 %. Of
weights that are spread like a bell int8 keeps the most, then fp8, then nf4.

Sources: of the rows' scales Dettmers et al. 2022, arXiv:2208.07339, section 2.1; of nf4 Dettmers et al. 2023,
arXiv:2305.14314, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

INT8, FP8, E4M3, E5M2, NF4 = "int8", "fp8", "e4m3", "e5m2", "nf4"
STORED_FORMS = {torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2}  # of a file
BLOCK = 64  # numbers with one scale, in nf4
_LARGEST = {INT8: 127.0, FP8: 448.0}
_AT_A_TIME = 1 << 20  # numbers that are wide in float32 while a matrix is rounded, in whole rows

Widen = Callable[[Tensor, Tensor, torch.dtype], Tensor]  # bits, scale, dtype of the result


def empty_state(
    out_features: int, in_features: int, form: str, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Bits and scale of a matrix [out, in], without values. Of nf4 the rows must have an even length.

    Returns:
        Bits, see `quantize`, and float32 scales.
    """
    if form == NF4:
        num_blocks = -(-out_features * in_features // BLOCK)
        packed = torch.empty(out_features, in_features // 2, dtype=torch.uint8, device=device)
        return packed, torch.empty(num_blocks, device=device)
    bits = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
    return bits, torch.empty(out_features, 1, device=device)


def quantize(weight: Tensor, form: str, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round a matrix.

    Args:
        weight: Finite. Shape [out, in].
        form: "int8", "fp8" or "nf4".
        unit: For fp8 what the weights are multiples of, where they come from a file in fp8: one number, or shape [out].

    Returns:
        The bits, of 8 bits as int8, whatever they mean, shape [out, in], of nf4 two in a uint8, shape [out, in / 2];
        and float32 scales, shape [out, 1], of nf4 shape [ceil(out * in / 64)]. See `widen`.
    """
    num_rows, length = weight.shape
    bits, scale = empty_state(num_rows, length, form, weight.device)
    step = max(_AT_A_TIME // length // BLOCK, 1) * BLOCK  # so that no block of nf4 is cut
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        scales = slice(start * length // BLOCK, -(-rows.stop * length // BLOCK)) if form == NF4 else rows
        own_unit = unit[rows] if unit is not None and unit.numel() > 1 else unit
        bits[rows], scale[scales] = _round(weight[rows], form, own_unit)
    return bits, scale


def _round(weight: Tensor, form: str, unit: Tensor | None) -> tuple[Tensor, Tensor]:
    """`quantize` at once."""
    if form == NF4:
        return _round_nf4(weight)
    rows = weight.float()
    low, high = rows.aminmax(dim=1, keepdim=True)
    largest = torch.maximum(high, -low)  # [out, 1]
    if form == INT8:
        scale = (largest / _LARGEST[INT8]).bfloat16().float()  # so that no precision rounds it when it is used
    else:
        units = torch.ones_like(largest) if unit is None else unit.to(rows).reshape(-1, 1).expand_as(largest)
        scale = units * (largest / (_LARGEST[FP8] * units)).log2().ceil().exp2()
    scale = torch.where(scale > 0, scale, 1.0)  # rows of zeros
    scaled = (rows / scale).clamp_(-_LARGEST[form], _LARGEST[form])
    if form == INT8:
        return scaled.round_().to(torch.int8), scale
    return scaled.to(torch.float8_e4m3fn).view(torch.int8), scale


def _round_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    wide = weight if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else weight.float()
    bits, state = quantize_4bit(wide.contiguous(), blocksize=BLOCK, quant_type=NF4)
    return bits.view(weight.shape[0], -1), state.absmax.float()


def keep_fp8(stored: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, str]:
    """A matrix in fp8 as a file has it.

    Args:
        stored: In float8_e4m3fn or float8_e5m2. Shape [out, in].
        scale: One number, or one for each row; None is 1.

    Returns:
        Bits and scale as `quantize` gives them, and their form.
    """
    rows = torch.ones(stored.shape[0], 1, device=stored.device)
    if scale is not None:
        rows = rows * scale.to(rows).reshape(-1, 1)
    return stored.contiguous().view(torch.int8), rows, STORED_FORMS[stored.dtype]


def widen(weight: Tensor, scale: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    """The numbers that are kept, in `dtype`. Shape [out, in]."""
    return WIDENINGS[form](weight, scale, dtype)


def _widen_int8(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float16:  # small scales are no numbers of fp16
        return (weight * scale).to(dtype)
    return weight * scale.to(dtype)  # one pass: torch widens as it multiplies


def _widen_fp8(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    own = torch.float32 if dtype == torch.float16 else dtype  # small scales are no numbers of fp16
    return weight.view(torch.float8_e4m3fn).to(own).mul_(scale.to(own)).to(dtype)


def _widen_e4m3(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.view(torch.float8_e4m3fn).to(dtype).mul_(scale)  # rounded once, as a file is that is read wide


def _widen_e5m2(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.view(torch.float8_e5m2).to(dtype).mul_(scale)


def _widen_nf4(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    shape = (weight.shape[0], 2 * weight.shape[1])
    known = dtype if dtype.itemsize < 8 else torch.float32  # there is none for float64
    wide: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(weight, scale, BLOCK, NF4, shape, known)
    return wide.to(dtype)


WIDENINGS: Mapping[str, Widen] = {
    INT8: _widen_int8,
    FP8: _widen_fp8,
    E4M3: _widen_e4m3,
    E5M2: _widen_e5m2,
    NF4: _widen_nf4,
}
