"""Options about how the denoiser is computed: attention and compiling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_COMPILE = "torch.compile"


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(OptionGroup):
    """How the denoiser is computed."""

    title: ClassVar[str] = "Speed"

    sdpa: bool = opt(False, "Attention of torch, which is used where nothing else is said.")
    mem_eff_attn: bool = opt(False, "Means --sdpa.")
    xformers: bool = opt(False, "Attention of the xformers package.", later="xformers; use --sdpa")
    flash_attn: bool = opt(False, "Attention of the flash_attn package.", later="flash_attn; use --sdpa")
    torch_compile: bool = opt(False, "Compile the denoiser.", later=_COMPILE)
    dynamo_backend: str = opt(
        "inductor",
        "Backend of --torch_compile.",
        choices=(
            "eager",
            "aot_eager",
            "inductor",
            "aot_ts_nvfuser",
            "nvprims_nvfuser",
            "cudagraphs",
            "ofi",
            "fx2trt",
            "onnxrt",
            "tensort",
            "ipex",
            "tvm",
        ),
        later=_COMPILE,
    )

    def remarks(self) -> Iterator[str]:
        if self.mem_eff_attn:
            yield "--mem_eff_attn means --sdpa."
