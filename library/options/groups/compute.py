"""Options about how the denoiser is computed: attention and compiling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

BACKENDS = (
    *("eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt", "onnxrt"),
    *("tensort", "ipex", "tvm"),
)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(OptionGroup):
    """How the denoiser is computed."""

    title: ClassVar[str] = "Speed"

    sdpa: bool = opt(False, "Attention of torch, which is used where nothing else is said.")
    mem_eff_attn: bool = opt(False, "Means --sdpa.")
    xformers: bool = opt(False, "Attention of the xformers package, on an NVIDIA or AMD GPU.")
    flash_attn: bool = opt(
        False, "Attention of the flash_attn package, on an NVIDIA or AMD GPU and with --mixed_precision bf16 or fp16."
    )
    torch_compile: bool = opt(
        False,
        "Compile the denoiser's blocks before the first step. That takes from half a minute to some minutes, and then "
        "every step is faster; how much is told.",
    )
    dynamo_backend: str = opt(
        "inductor",
        "Backend of --torch_compile. Most of them are not in a usual torch; no is for files that say so without it.",
        choices=("no", *BACKENDS),
    )

    @property
    def attention_package(self) -> str | None:
        """The package that computes attention; None for torch."""
        return "xformers" if self.xformers else "flash_attn" if self.flash_attn else None

    @property
    def _switches(self) -> tuple[str, ...]:
        return ("sdpa", "xformers", "flash_attn")

    def check(self) -> Iterator[str]:
        asked = [f"--{name}" for name in self._switches if getattr(self, name)]
        if self.attention_package and len(asked) > 1:
            yield f"{' and '.join(asked)} exclude each other. Keep one of them."
        if self.torch_compile and self.dynamo_backend == "no":
            yield "--torch_compile with --dynamo_backend no compiles nothing. Leave one of them out."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.attention_package:
            yield "mem_eff_attn", f"--{self.attention_package} goes before it"
        if not self.torch_compile and self.dynamo_backend != "no":
            yield "dynamo_backend", "without --torch_compile"

    def remarks(self) -> Iterator[str]:
        if self.mem_eff_attn and not self.attention_package:
            yield "--mem_eff_attn means --sdpa."


@dataclass(frozen=True, kw_only=True)
class OlderComputeOptions(ComputeOptions):
    """The same, with a name that older commands for whole models have."""

    diffusers_xformers: bool = opt(False, "Means --xformers.")

    @property
    def attention_package(self) -> str | None:
        """The package that computes attention; None for torch."""
        return "xformers" if self.diffusers_xformers else super().attention_package

    @property
    def _switches(self) -> tuple[str, ...]:
        names = super()._switches
        return names if self.xformers else (*names, "diffusers_xformers")

    def remarks(self) -> Iterator[str]:
        yield from super().remarks()
        if self.diffusers_xformers and not self.xformers:
            yield "--diffusers_xformers means --xformers."
