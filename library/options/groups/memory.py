"""Options about memory: what is kept where, and in how many bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_NO_HINT = "memory is handled without this hint"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(OptionGroup):
    """Where weights are kept, and in how many bits."""

    title: ClassVar[str] = "Memory"

    fp8_base: bool = opt(False, "Means --base_weights_dtype=fp8.")
    fp8_base_unet: bool = opt(False, "Means --base_weights_dtype=fp8. Text encoders keep their format in either case.")
    base_weights_dtype: str | None = opt(
        None,
        "Format in which the frozen denoiser's blocks are kept beside a network that trains: linear layers in 8 bits "
        "(fp8, int8) or 4 (nf4), convolutions in 8, widened for each use.",
        choices=("fp8", "int8", "nf4"),
    )
    blocks_to_swap: int | str | None = opt(
        None,
        "Blocks of the denoiser that stay in host memory until they are needed. All of them may; auto takes the least "
        "number with which the run should fit.",
        unit="blocks",
        minimum=0,
    )
    swap_prefetch: int = opt(
        1, "How many swapped blocks are on their way to the GPU ahead of their use.", unit="blocks", minimum=0
    )
    sample_blocks_to_swap: int | None = opt(
        None,
        "The same as --blocks_to_swap while samples are drawn, which need less memory. Not set means as in training.",
        unit="blocks",
        minimum=0,
    )
    fit: str | None = opt(
        None,
        "Memory of the GPU that the run has to fit into, as 12GB or 11.5GiB: settings that save memory are chosen "
        "and applied, those that cost the least time first. 12GB is 12 * 10^9 bytes; 12GiB is what a card of 12 GB "
        "has.",
        metavar="SIZE",
    )
    lowram: bool = opt(False, "Hint for machines with little memory.", no_effect=_NO_HINT)
    highvram: bool = opt(False, "Hint for cards with much memory.", no_effect=_NO_HINT)

    @property
    def weights_format(self) -> str | None:
        """Format of the frozen denoiser's layers: "fp8", "int8", "nf4", or None for that of computations."""
        return self.base_weights_dtype or ("fp8" if self.fp8_base or self.fp8_base_unet else None)

    @property
    def weights_format_flag(self) -> str:
        """The option that asks for it."""
        names = ("base_weights_dtype", "fp8_base", "fp8_base_unet")
        return next(f"--{name}" for name in names if getattr(self, name))

    @property
    def swaps(self) -> bool:
        """Whether any block is to be swapped."""
        return self.blocks_to_swap not in (None, 0)

    @property
    def bytes_to_fit(self) -> int | None:
        """`--fit` in bytes."""
        return None if self.fit is None else size_in_bytes(self.fit)

    def check(self) -> Iterator[str]:
        if self.fit is not None and not size_in_bytes(self.fit):
            yield f"--fit needs a size such as 12GB or 11.5GiB, got '{self.fit}'."
        if (self.fp8_base or self.fp8_base_unet) and self.base_weights_dtype not in (None, "fp8"):
            flag = "--fp8_base" if self.fp8_base else "--fp8_base_unet"
            yield f"{flag} and --base_weights_dtype {self.base_weights_dtype} exclude each other. Keep one of them."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.swaps:
            yield "swap_prefetch", "without --blocks_to_swap"
            yield "sample_blocks_to_swap", "without --blocks_to_swap"


def size_in_bytes(text: str) -> int | None:
    """Bytes of a size such as "12GB", "11.5 GiB" or "800M"; None where it is none, or not above 0.

    Cards are sold in GB and made in GiB: a number up to 1024 with nothing behind it is in GB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        return None
    number = float(match[1])
    unit = 10**9 if not match[2] and number <= 1024 else _UNITS[match[2]]
    return int(number * unit) or None
