"""Names of number formats that the scripts for whole models take, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ANY_PRECISION = {  # {as it is typed: torch's name}
    **dict.fromkeys(("float", "fp32", "float32"), "float32"),
    **dict.fromkeys(("fp16", "half", "float16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e4m3fn", "float8_e4m3fn"), "float8_e4m3fn"),
    **dict.fromkeys(("fp8_e5m2", "float8_e5m2"), "float8_e5m2"),
}


def dtype_of(precision: str | None) -> torch.dtype | None:
    """A name as torch has it; None, and the word "no", keep what each tensor has."""
    import torch

    if precision is None or precision == "no":
        return None
    dtype: torch.dtype = getattr(torch, ANY_PRECISION[precision])
    return dtype
