"""Checkpointed blocks whose inputs wait in host memory: what gradient checkpointing leaves on the GPU goes, too.

Between forward and backward pass a checkpointed block keeps its inputs only. Here they are copied to page-locked host
memory while the block computes, and come back one block ahead of their use. Copies change no bit.

Memory of the device is taken and given back in the order of the computing alone: computing waits for a copy before
what it reads is given back, on the device, as the host waits for nothing. (Leaving that to the allocator, by
`record_stream`, keeps it from using memory again until the device has caught up with the host, which asks for a whole
pass ahead: then nothing would be saved.) Page-locked memory comes from torch, which keeps it from step to step.

Source: Chen et al. 2016, arXiv:1604.06174 (checkpoints).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from library.memory.copy_lane import CopyLane, Mark, copy_lane

_LEAST_BYTES = 2**18  # smaller inputs, most of which all blocks share, stay where they are


class HostCheckpoint:
    """Runs a block as `torch.utils.checkpoint.checkpoint` does, and keeps its inputs on the host.

    Those of the last block stay, as long as no other one follows: they are what the backward pass begins with.

    Args:
        lane_of: Gives the lane for copies of a device.
        least_bytes: Of an input that is moved.
    """

    def __init__(
        self, lane_of: Callable[[torch.device], CopyLane] = copy_lane, least_bytes: int = _LEAST_BYTES
    ) -> None:
        self._make_lane, self._least_bytes = lane_of, least_bytes
        self._lanes: dict[torch.device, CopyLane] = {}
        self._last: weakref.ref[_Inputs] | None = None

    def __call__(self, block: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        """`block(*inputs, **named)`; autocast and random numbers are those of the first time when it runs again.

        Named inputs stay where they are: all blocks share them.
        """
        before = None if self._last is None else self._last()
        if before is not None:
            before.leave()
        kept = _Inputs(self._lane_of, self._least_bytes, before)
        self._last = weakref.ref(kept)
        with saved_tensors_hooks(kept.put, _taken):  # the block's own tensors are not saved, so they see no hook
            return checkpoint(block, *inputs, use_reentrant=False, **named)

    def _lane_of(self, device: torch.device) -> CopyLane:
        if device not in self._lanes:
            self._lanes[device] = self._make_lane(device)
        return self._lanes[device]


class _Inputs:
    """The inputs of one block. The graph holds them, and nothing else does.

    Args:
        lane_of: Gives the lane for copies of a device.
        least_bytes: Of an input that is moved.
        before: Of the block before, whose turn comes next in the backward pass.
    """

    def __init__(self, lane_of: Callable[[torch.device], CopyLane], least_bytes: int, before: _Inputs | None) -> None:
        self._lane_of, self._least_bytes = lane_of, least_bytes
        self._before = None if before is None else weakref.ref(before)
        self._moved: list[_Moved] = []

    def put(self, tensor: Tensor) -> Tensor | tuple[_Inputs, int]:
        """Begin to copy a tensor to the host."""
        if tensor.nbytes < self._least_bytes:
            return tensor
        self._moved.append(_Moved(tensor, self._lane_of(tensor.device)))
        return self, len(self._moved) - 1

    def take(self, index: int) -> Tensor:
        """A tensor on its device. The inputs of the block before set out, too."""
        if self._moved[index].is_away:  # so are the others, as all are taken one after the other
            self.fetch()
        if self._before is not None and (before := self._before()) is not None:
            before.fetch()
        return self._moved[index].take()

    def fetch(self) -> None:
        """Begin to copy back what is not on the device or on its way."""
        for moved in self._moved:
            moved.fetch()

    def leave(self) -> None:
        """Give back what is on the device."""
        for moved in self._moved:
            moved.leave()

    def __del__(self) -> None:
        """What has come back for nothing, because a pass was broken off, may still be on its way."""
        self.leave()


class _Moved:
    """A tensor that is in host memory, and at times on its device as well."""

    def __init__(self, tensor: Tensor, lane: CopyLane) -> None:
        """Begin to copy it to the host."""
        self._lane, self._device = lane, tensor.device
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._there: Tensor | None = tensor
        self._copied: Mark = lane.copy(self._host, tensor.detach(), after=lane.computed())

    @property
    def is_away(self) -> bool:
        """Whether it is neither on the device nor on its way there."""
        return self._there is None

    def fetch(self) -> None:
        """Begin to copy it to the device, unless it is there."""
        if self._there is None:
            self._there = torch.empty_like(self._host, device=self._device)
            self._copied = self._lane.copy(self._there, self._host, after=self._lane.computed())

    def take(self) -> Tensor:
        """Hand it out, once it is there."""
        there = self._there
        assert there is not None
        self.leave()
        return there

    def leave(self) -> None:
        """Give it back on the device, once its copy is done."""
        if self._there is not None:
            self._lane.hold(self._copied)
            self._there = None


def _taken(place: Tensor | tuple[_Inputs, int]) -> Tensor:
    """What `put` was given."""
    if isinstance(place, Tensor):
        return place
    inputs, index = place
    return inputs.take(index)
