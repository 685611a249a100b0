"""SDXL, SD1.5 and SD2.1 as `benchmarks.gpu_step` measures them: our trainers, a hand-written loop, and diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_rows import Training
from benchmarks.random_unet import outline, random_family
from benchmarks.unet_flops import unet_flops
from benchmarks.unet_loops import CLIP_TOKENS, random_example, unet_step
from benchmarks.unet_sizes import UnetSize
from library.families.sd.options import FINE_TUNE_SCRIPT, SD_NETWORK_SCRIPT, FineTuneOptions, SdNetworkOptions
from library.families.sdxl.options import SDXL_FULL_SCRIPT, SDXL_NETWORK_SCRIPT, SdxlFullOptions, SdxlNetworkOptions
from library.families.unet.family import UnetFamily
from library.options.spec import ScriptText


@dataclass(frozen=True)
class UnetSubject:
    """A U-Net, see `benchmarks/subject.py`."""

    size: UnetSize
    network_module: str = "networks.lora"
    latent_channels: int = 4

    @cached_property
    def depth(self) -> int:
        """Residual and transformer blocks, and changes of size."""
        return len(outline(self.size).block_row())

    def script(self, *, is_network: bool) -> tuple[type[Any], ScriptText]:
        """Of the two scripts of SDXL, or of train_network.py and fine_tune.py."""
        if self.size.kind == "sdxl":
            return (SdxlNetworkOptions, SDXL_NETWORK_SCRIPT) if is_network else (SdxlFullOptions, SDXL_FULL_SCRIPT)
        return (SdNetworkOptions, SD_NETWORK_SCRIPT) if is_network else (FineTuneOptions, FINE_TUNE_SCRIPT)

    def family(self, options: Any) -> UnetFamily:
        """SDXL or SD without files."""
        return random_family(options, self.size)

    def text_states(self, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Of CLIP, or of CLIP-L and CLIP-G."""
        size, widths = self.size, {"clip": self.size.context}
        if size.pooled:
            widths = {"clip_l": size.context - size.pooled, "clip_g": size.pooled}
        states = {name: torch.randn(batch, CLIP_TOKENS, width) for name, width in widths.items()}
        if size.pooled:
            states["clip_g_pooled"] = torch.randn(batch, size.pooled)
        return {name: state.to(dtype) for name, state in states.items()}

    def flops(self, training: Training, side: int) -> int:
        """Counted by torch; the first time for each size and rank takes seconds."""
        return unet_flops(self.size, side=side, rank=training.rank).total

    def other_step(
        self,
        training: Training,
        *,
        side: int,
        batch: int,
        device: torch.device,
        is_diffusers: bool,
        recomputes: bool,
    ) -> Callable[[], None]:
        """See `Subject`."""
        example = random_example(self.size, side=side, batch=batch, dtype=torch.bfloat16, device=device)
        return unet_step(
            self.size,
            example,
            rank=training.rank,
            is_diffusers=is_diffusers,
            recomputes=recomputes,
            make_optimizer=training.optimizer(),
        )
