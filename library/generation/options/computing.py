"""Options about how a model is computed while it draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class DrawingComputeOptions(OptionGroup):
    """Precision, attention and batches."""

    title: ClassVar[str] = "Speed and memory"

    fp16: bool = opt(False, "Weights and computations in fp16.")
    bf16: bool = opt(False, "Weights and computations in bf16.")
    no_half_vae: bool = opt(False, "Run the VAE in float32.")
    xformers: bool = opt(False, "Attention of the xformers package, on an NVIDIA or AMD GPU.")
    sdpa: bool = opt(False, "Attention of torch, which is used where nothing else is said.")
    diffusers_xformers: bool = opt(False, "Means --xformers.")
    opt_channels_last: bool = opt(False, "Keep weights of convolutions with channels last: faster on some GPUs.")
    batch_size: int = opt(1, "Pictures that are drawn at once; each is what it is alone, up to rounding.", minimum=1)
    vae_batch_size: float | None = opt(
        None,
        "Pictures that are decoded at once, or a share of --batch_size below 1. Not set means one.",
        above=0,
    )
    vae_slices: int | None = opt(
        None,
        "Decode a picture in so many strips, one after the other, to save memory; strips overlap. Not set means whole.",
        minimum=1,
    )
    blocks_to_swap: int | None = opt(
        None, "Blocks of the denoiser that wait in host memory, to save memory of the GPU.", unit="blocks", minimum=0
    )

    @property
    def precision(self) -> str:
        """ "float", "fp16" or "bf16"."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "float"

    @property
    def attention_package(self) -> str | None:
        """The package that computes attention; None for torch."""
        return "xformers" if self.xformers or self.diffusers_xformers else None

    @property
    def num_decoded(self) -> int:
        """Pictures that are decoded at once."""
        size = self.vae_batch_size
        return 1 if size is None else max(1, int(self.batch_size * size if size < 1 else size))

    def check(self) -> Iterator[str]:
        if self.fp16 and self.bf16:
            yield "--fp16 and --bf16 exclude each other. Keep one of them."
        if self.attention_package and self.sdpa:
            yield "--sdpa and --xformers exclude each other. Keep one of them."
