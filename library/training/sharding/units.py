"""Cutting a model into shards: one unit a block, and one for the rest around them.

A unit is gathered when its forward pass begins, and freed after it; so a process holds its part of everything and one
block or two as a whole. The blocks are the items of the model's lists of modules: every model here is a row of them.
torch's FSDP2 (`fully_shard`) does the gathering and the averaging of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from library.memory.blocks import blocks
from library.training.sharding.settings import ShardingSettings

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Cutting:
    """How models are cut.

    Attributes:
        mesh: Of the processes that share a model.
        settings: That were asked for.
        device: Where models run.
    """

    mesh: DeviceMesh
    settings: ShardingSettings
    device: torch.device

    def cut(self, model: nn.Module, dtype: torch.dtype, computing: torch.dtype | None) -> nn.Module:
        """Shard a model in place, unit by unit, so that no device has more than one of them as a whole.

        Args:
            model: With its weights as they are stored, in host memory. It must be called, not one of its parts.
            dtype: That its weights are kept in.
            computing: Precision of gathered weights; None for `dtype`. Gradients are averaged in float32.
        """
        from torch.distributed.fsdp import fully_shard

        for unit in (*blocks(model), model):
            self._convert(unit, dtype)
            fully_shard(unit, **self._arguments(computing))
        return model

    def _arguments(self, computing: torch.dtype | None) -> dict[str, Any]:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        return {
            "mesh": self.mesh,
            "reshard_after_forward": self.settings.reshards_after_forward,
            # inputs are left as they are: rounded timesteps would be other ones
            "mp_policy": MixedPrecisionPolicy(computing, torch.float32, cast_forward_inputs=False),
            "offload_policy": offload if self.settings.offloads else OffloadPolicy(),
        }

    def _convert(self, unit: nn.Module, dtype: torch.dtype) -> None:
        """Weights of this unit that are not sharded yet, to the precision they are kept in."""
        from torch.distributed.tensor import DTensor

        for parameter in unit.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(dtype).contiguous()
