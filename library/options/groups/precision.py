"""Options about number formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(OptionGroup):
    """Number formats of computations and of what trains."""

    title: ClassVar[str] = "Precision"

    mixed_precision: str = opt(
        "no", "Format of the frozen weights and of most computations.", choices=("no", "fp16", "bf16")
    )
    full_fp16: bool = opt(False, "Keep the trained weights in fp16 too; needs --mixed_precision fp16.")
    full_bf16: bool = opt(False, "Keep the trained weights in bf16 too; needs --mixed_precision bf16.")
    bf16_rounding: str = opt(
        "stochastic",
        "How --full_bf16 keeps changes smaller than the last bit of a weight: by rounding at random (stochastic), by a "
        "second number with what was lost (kahan), or not at all (nearest).",
        choices=("stochastic", "kahan", "nearest"),
    )
    no_half_vae: bool = opt(False, "Run the VAE in float32.")

    def check(self) -> Iterator[str]:
        if self.full_fp16 and self.full_bf16:
            yield "--full_fp16 and --full_bf16 exclude each other. Keep one of them."
        elif self.full_fp16 and self.mixed_precision != "fp16":
            yield f"--full_fp16 needs --mixed_precision fp16, got {self.mixed_precision}."
        elif self.full_bf16 and self.mixed_precision != "bf16":
            yield f"--full_bf16 needs --mixed_precision bf16, got {self.mixed_precision}."

    def remarks(self) -> Iterator[str]:
        if self.bf16_rounding != "stochastic" and not self.full_bf16:
            yield f"--bf16_rounding {self.bf16_rounding} has no effect without --full_bf16."
