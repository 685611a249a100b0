"""How much noise each of 1000 steps adds: the published schedule, and others that the folder of a model may name.

Source: Ho et al. 2020, arXiv:2006.11239 (linear); Rombach et al. 2022, arXiv:2112.10752 (scaled_linear); Nichol &
Dhariwal 2021, arXiv:2102.09672 (squaredcos_cap_v2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from library.diffusion.flow import NUM_TIMESTEPS

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_GREATEST, _COSINE_OFFSET = 0.999, 0.008


@dataclass(frozen=True, kw_only=True)
class BetaSchedule:
    """A schedule as diffusers names it; without arguments that of SD 1.x, SD 2.x and SDXL.

    Attributes:
        kind: One of BETA_SCHEDULES: evenly spaced, squares of evenly spaced roots, or by a squared cosine.
        first: Beta of the first step, between 0 and 1; not for the cosine.
        last: Beta of the last step, between 0 and 1; not for the cosine.
        values: All 1000 betas, each between 0 and 1, in place of all this; empty for none.

    Raises:
        ValueError: There is no such kind, or a beta is out of its range, or their number is not 1000.
    """

    kind: str = "scaled_linear"
    first: float = 0.00085
    last: float = 0.012
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in BETA_SCHEDULES:
            raise ValueError(f"kind must be one of {', '.join(BETA_SCHEDULES)}, got {self.kind!r}")
        if len(self.values) not in (0, NUM_TIMESTEPS):
            raise ValueError(f"there must be {NUM_TIMESTEPS} values or none, got {len(self.values)}")
        for beta in (self.first, self.last, *self.values):
            if not 0 < beta < 1:
                raise ValueError(f"betas must be between 0 and 1, got {beta}")

    def betas(self) -> Tensor:
        """Variance of the noise that each step adds. Shape [1000], float32."""
        if self.values:
            return torch.tensor(self.values)
        if self.kind == "linear":
            return torch.linspace(self.first, self.last, NUM_TIMESTEPS)
        if self.kind == "scaled_linear":
            return torch.linspace(self.first**0.5, self.last**0.5, NUM_TIMESTEPS) ** 2
        kept = [_cosine(step / NUM_TIMESTEPS) for step in range(NUM_TIMESTEPS + 1)]
        return torch.tensor([min(1 - kept[step + 1] / kept[step], _GREATEST) for step in range(NUM_TIMESTEPS)])


PUBLISHED = BetaSchedule()


def _cosine(time: float) -> float:
    return math.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
