"""SD3 and SD3.5 as `benchmarks.gpu_step` measures them: our trainers, a hand-written loop, and diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.diffusers_loop import diffusers_step
from benchmarks.flops import step_flops
from benchmarks.gpu_rows import Training
from benchmarks.plain_loop import Example, lora_step
from benchmarks.random_model import RandomFamily, Sizes, position_table, random_mmdit
from benchmarks.step_memory import PIXELS_PER_CELL
from library.families.sd3.options import FULL_SCRIPT, NETWORK_SCRIPT, Sd3FullOptions, Sd3NetworkOptions
from library.families.sd3.text import join
from library.models.mmdit import MMDiTConfig
from library.models.positions import centred_window
from library.options.spec import ScriptText


@dataclass(frozen=True)
class MmditSubject:
    """An MMDiT, see `benchmarks/subject.py`.

    Attributes:
        config: Of the model.
        sizes: Of the text.
    """

    config: MMDiTConfig
    sizes: Sizes
    network_module: str = "networks.lora_sd3"

    @property
    def latent_channels(self) -> int:
        """16."""
        return self.config.in_channels

    @property
    def depth(self) -> int:
        """Joint blocks."""
        return self.config.depth

    def script(self, *, is_network: bool) -> tuple[type[Any], ScriptText]:
        """Of sd3_train_network.py and sd3_train.py."""
        return (Sd3NetworkOptions, NETWORK_SCRIPT) if is_network else (Sd3FullOptions, FULL_SCRIPT)

    def family(self, options: Any) -> RandomFamily:
        """SD3 without files."""
        return RandomFamily.of(options, self.config)

    def text_states(self, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Of CLIP-L, CLIP-G and T5."""
        return self.sizes.text_states(self.config, batch, dtype)

    def flops(self, training: Training, side: int) -> int:
        """Computed from the sizes."""
        ranks = training.ranks(self.config)
        return step_flops(self.config, pixels=side, ranks=ranks, num_text=self.sizes.num_text).total

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
        example = self._example(side, batch, device)
        if is_diffusers:
            return diffusers_step(
                self.config,
                example,
                rank=training.rank,
                is_attention_alone=training.is_attention_alone,
                recomputes=recomputes,
                make_optimizer=training.optimizer(),
            )
        denoiser = random_mmdit(self.config, torch.bfloat16, device).train()
        denoiser.pos_embed = torch.empty(0, device=device)  # a loop of its own needs one window of it
        denoiser.gradient_checkpointing = recomputes
        layers = training.ranks(self.config)
        return lora_step(denoiser, example, rank=training.rank, layers=layers, make_optimizer=training.optimizer())

    def _example(self, side: int, batch: int, device: torch.device) -> Example:
        config, states = self.config, self.text_states(batch, torch.bfloat16)
        text = join(states, context_dim=config.context_dim, pooled_dim=config.pooled_dim)
        cells = side // PIXELS_PER_CELL
        patches = cells // config.patch_size
        latents = torch.randn(batch, config.in_channels, cells, cells, device=device)
        positions = centred_window(position_table(config), patches, patches).bfloat16().to(device)
        return Example(latents, text.context.to(device), text.pooled.to(device), positions)
