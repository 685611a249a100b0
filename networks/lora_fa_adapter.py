"""LoRA-FA: of the two factors only `up` is trained; `down` keeps its random start values.

A layer's input need then not be kept for the backward pass, only its product with `down`.

Source: Zhang et al. 2023, arXiv:2308.03303, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from networks.adapters import Factor, LoraAdapter


class _FrozenFactor(Factor):
    """A factor whose numbers are no parameter: it is saved, moved and loaded with the network, but never trained."""

    def __init__(self, *shape: int, device: torch.device | str | None = None) -> None:
        super().__init__(*shape, device=device)
        start = self.weight.detach()
        del self.weight
        self.register_buffer("weight", start)


class LoraFaAdapter(LoraAdapter):
    """A low-rank addition to one layer with a frozen `down`. Arguments as for `LoraAdapter`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        frozen = [_FrozenFactor(*down.shape, device=down.device) for down in self._weights(self.lora_down)]
        self.lora_down = frozen[0] if self.num_parts == 1 else nn.ModuleList(frozen)

    def reset(self, generator: Generator | None = None) -> None:
        """Start values: `down` normal with deviation sqrt(2 / (inputs + rank)), `up` zero."""
        for down, up in zip(self._weights(self.lora_down), self._weights(self.lora_up), strict=True):
            nn.init.normal_(down, std=math.sqrt(2 / (down.shape[1] + down.shape[0])), generator=generator)
            nn.init.zeros_(up)

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`, all of it in `up`."""
        for up in self._weights(self.lora_up):
            up.mul_(ratio.to(up.dtype))
