"""Options about number formats, memory and speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_FEWER_BITS = "base weights in fewer bits"
_COMPILE = "torch.compile"
_NO_HINT = "memory is handled without this hint"


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(OptionGroup):
    """Number formats, memory and speed."""

    title: ClassVar[str] = "Precision, memory and speed"

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
    fp8_base: bool = opt(False, "Keep the frozen weights in 8 bits.", later=_FEWER_BITS)
    fp8_base_unet: bool = opt(False, "Keep the frozen denoiser in 8 bits.", later=_FEWER_BITS)
    blocks_to_swap: int | None = opt(
        None, "Blocks of the denoiser that stay in host memory until they are needed.", unit="blocks", minimum=0
    )
    sdpa: bool = opt(False, "Attention of torch. It is always used; the option is there for older commands.")
    mem_eff_attn: bool = opt(False, "Means --sdpa.")
    xformers: bool = opt(False, "Attention of the xformers package.", later="xformers; use --sdpa")
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
    lowram: bool = opt(False, "Hint for machines with little memory.", no_effect=_NO_HINT)
    highvram: bool = opt(False, "Hint for cards with much memory.", no_effect=_NO_HINT)

    def check(self) -> Iterator[str]:
        if self.full_fp16 and self.full_bf16:
            yield "--full_fp16 and --full_bf16 exclude each other. Keep one of them."
        elif self.full_fp16 and self.mixed_precision != "fp16":
            yield f"--full_fp16 needs --mixed_precision fp16, got {self.mixed_precision}."
        elif self.full_bf16 and self.mixed_precision != "bf16":
            yield f"--full_bf16 needs --mixed_precision bf16, got {self.mixed_precision}."

    def remarks(self) -> Iterator[str]:
        if self.mem_eff_attn:
            yield "--mem_eff_attn means --sdpa."
        if self.bf16_rounding != "stochastic" and not self.full_bf16:
            yield f"--bf16_rounding {self.bf16_rounding} has no effect without --full_bf16."
