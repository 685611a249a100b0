"""DyLoRA: a LoRA that is trained a few ranks at a time, so that it can be cut to a lower rank afterwards.

Each forward pass in training draws a place b among the ranks, a multiple of `unit`. The ranks below b + unit act, at
the strength alpha / rank of the whole, and of these the ranks from b on get gradients. Without training all ranks act.

Source: Valipour et al. 2022, arXiv:2210.07558, section 3, with the ranks before b frozen in a pass. That the strength
does not go with b is our choice: a rank then weighs the same in every pass, in a cut and in the whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from networks.adapters import LoraAdapter


class DyLoraAdapter(LoraAdapter):
    """A low-rank addition of which each pass trains `unit` ranks. Other arguments as for `LoraAdapter`.

    Args:
        unit: A divisor of the rank.

    Raises:
        ValueError: The rank is no multiple of it, or the layer shall have parts.
    """

    unit_of_rank: Tensor

    def __init__(self, *args: Any, unit: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.rank % unit or self.num_parts > 1:
            raise ValueError(f"rank {self.rank} in {self.num_parts} parts cannot be trained in units of {unit}")
        self.unit = unit
        up = self.lora_up.weight
        places = torch.arange(self.rank, device=up.device) // unit  # type: ignore[arg-type]
        self.register_buffer("unit_of_rank", places, persistent=False)

    def pair_of_pass(self) -> tuple[Tensor, Tensor]:
        """In training, `down` and `up` with gradients for the drawn ranks only, and zeros in `up` for later ones.

        The draw stays on the device; where blocks are recomputed, torch brings its generator back.
        """
        down, up = self.pair()
        if not self.training:
            return down, up
        drawn = torch.randint(self.rank // self.unit, (), device=down.device)
        is_trained = self.unit_of_rank == drawn  # [rank]
        frozen = up.detach() * (self.unit_of_rank < drawn).view(1, -1, *[1] * (up.dim() - 2)).to(up.dtype)
        down = torch.where(is_trained.view(-1, *[1] * (down.dim() - 1)), down, down.detach())
        return down, torch.where(is_trained.view(1, -1, *[1] * (up.dim() - 2)), up, frozen)
