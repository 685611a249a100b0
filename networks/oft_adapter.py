"""Orthogonal finetuning: the outputs of a layer are turned, in groups, by matrices that are trained.

y' = Rᵀ y, with the bias left out of it: each group of `out // number of groups` outputs has its rotation, and angles
between the rows of the weight stay as they are. It acts on what the layer gives, so it goes with weights in any form.

Source: Qiu et al. 2023, arXiv:2306.07280, sections 3 and 4.3 (Cayley form, limited norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from networks.layer_adapter import LayerAdapter
from networks.lora_linear import compute_dtype

_EPSILON = 1e-8


@dataclass(frozen=True)
class Rotation:
    """What a file holds of one adapter.

    Attributes:
        blocks: What the rotations are made of; zeros turn nothing. Shape [groups, n, n], n outputs a group.
        alpha: Limits the norm of blocks - blocksᵀ over all groups to alpha times the layer's outputs; 0 is no limit.
    """

    blocks: Tensor
    alpha: float

    @property
    def num_groups(self) -> int:
        """Number of rotations."""
        return self.blocks.shape[0]

    @property
    def num_outputs(self) -> int:
        """Outputs of the layer."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    def turn(self) -> Tensor:
        """R - I for rows: y (R - I) is the change of outputs y. Shape of `blocks`, float32 (or float64).

        R = (I + Q) (I - Q)⁻¹ with Q = blocks - blocksᵀ, whose norm is limited. I - Q always has an inverse, so the
        device is not asked whether it has.
        """
        blocks = self.blocks if self.blocks.dtype == torch.float64 else self.blocks.float()
        skew = blocks - blocks.transpose(1, 2)
        if self.alpha:
            norm = skew.norm()
            skew = skew * ((norm.clamp(max=self.alpha * self.num_outputs) + _EPSILON) / (norm + _EPSILON))
        identity = torch.eye(skew.shape[1], dtype=skew.dtype, device=skew.device)
        solved: Tensor = torch.linalg.solve_ex(identity - skew, 2 * skew)[0]  # (I - Q)⁻¹ (I + Q) - I
        return solved


class OftAdapter(LayerAdapter):
    """Rotations of one layer's outputs. At multiplier m each is m (R - I) + I.

    Args:
        name, target, multiplier: As for `LayerAdapter`.
        rank: Number of groups, a divisor of the layer's outputs.
        alpha: See `Rotation`.
        device: Where the parameter is made.

    The parameter holds no values until `reset` or `load` is called.

    Raises:
        ValueError: The outputs cannot be divided into so many groups.
    """

    def __init__(
        self,
        name: str,
        target: nn.Module,
        rank: int,
        alpha: float,
        *,
        multiplier: float = 1.0,
        device: torch.device | str | None = None,
        **_unused: Any,
    ) -> None:
        super().__init__(name, target, rank, alpha, multiplier=multiplier)
        outputs = int(target.out_channels if isinstance(target, nn.Conv2d) else target.out_features)  # type: ignore[arg-type]
        if outputs % rank:
            raise ValueError(f"{name}: {outputs} outputs cannot be divided into {rank} equal groups")
        self.oft_blocks = nn.Parameter(torch.empty(rank, outputs // rank, outputs // rank, device=device))

    def reset(self, generator: Generator | None = None) -> None:
        """Zeros: nothing is turned. No number is drawn."""
        nn.init.zeros_(self.oft_blocks)

    def rotation(self) -> Rotation:
        """The values. Gradients flow through."""
        return Rotation(self.oft_blocks, self.alpha)

    def saved(self) -> dict[str, Tensor]:
        """See `LayerAdapter`."""
        return {".oft_blocks": self.oft_blocks.detach(), ".alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    @torch.no_grad()
    def load(self, values: Rotation) -> None:
        """Take over values of a file; shapes and alpha must have been compared."""
        self.oft_blocks.copy_(values.blocks)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, turned. Shapes as those of the layer."""
        y = self.base_forward(x, *args, **kwargs)
        if not self.enabled or self.multiplier == 0:
            return y
        axis = 1 if isinstance(self.target, nn.Conv2d) else -1
        dtype, bias = compute_dtype(x), self.target.bias
        plain = (y if bias is None else y.movedim(axis, -1).sub(bias).movedim(-1, axis)).to(dtype)  # type: ignore[arg-type]
        turn = self.rotation().turn().to(dtype) * self.multiplier
        return y + turned(plain, turn, axis).to(y.dtype)

    @torch.no_grad()
    def changed_weight(self, values: Rotation | None, device: torch.device | str) -> Tensor:
        """See `LayerAdapter`. The bias stays as it is."""
        weight: Tensor = self.target.weight  # type: ignore[assignment]
        given = values or self.rotation()
        turn = Rotation(given.blocks.to(device), given.alpha).turn() * self.multiplier
        change = turned(weight.to(device, turn.dtype), turn, 0)
        return weight.to(turn.dtype) + change.to(weight.device)


def turned(values: Tensor, turn: Tensor, axis: int) -> Tensor:
    """The change of values whose outputs lie along `axis`. `turn` is of shape [groups, n, n]."""
    groups, size, _ = turn.shape
    last = values.movedim(axis, -1)
    rows = last.reshape(-1, groups, size).transpose(0, 1)  # [groups, rows, n]
    return torch.bmm(rows, turn).transpose(0, 1).reshape(last.shape).movedim(-1, axis)
