"""Checkpointed blocks whose inputs wait in host memory: what gradient checkpointing leaves on the GPU goes, too.

Between forward and backward pass a checkpointed block keeps its inputs only. Here they are copied to page-locked host
memory while the next block computes, and come back one block ahead of their use. Copies change no bit.

Source: Chen et al. 2016, arXiv:1604.06174 (checkpoints).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


class HostCheckpoint:
    """Runs a block as `torch.utils.checkpoint.checkpoint` does, and keeps its inputs on the host.

    On CUDA the copies run on a stream of their own.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._before: weakref.ref[_Inputs] | None = None

    def __call__(self, block: Callable[..., Any], *inputs: Tensor) -> Any:
        """`block(*inputs)`; autocast and random numbers are those of the first time when it runs again."""
        kept = _Inputs(self._stream_of, None if self._before is None else self._before())
        self._before = weakref.ref(kept)
        with saved_tensors_hooks(kept.put, kept.take):  # the block's own tensors are not saved, so they see no hook
            return checkpoint(block, *inputs, use_reentrant=False)

    def _stream_of(self, device: torch.device) -> torch.cuda.Stream | None:
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


class _Inputs:
    """The inputs of one block: on the host, and in the backward pass on their device again.

    Args:
        stream_of: Gives the stream for copies of a device; None where there are no streams.
        before: Of the block before, whose turn comes next in the backward pass.
    """

    def __init__(self, stream_of: Callable[[torch.device], torch.cuda.Stream | None], before: _Inputs | None) -> None:
        self._stream_of = stream_of
        self._before = None if before is None else weakref.ref(before)
        self._on_host: list[tuple[Tensor, torch.device]] = []
        self._back: dict[int, Tensor] = {}

    def put(self, tensor: Tensor) -> tuple[_Inputs, int]:
        """Begin to copy a tensor to the host."""
        stream = self._stream_of(tensor.device)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with _on(stream):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=stream is not None)
            host.copy_(tensor, non_blocking=stream is not None)
        if stream is not None:
            tensor.record_stream(stream)  # its memory is not given away before it is copied
        self._on_host.append((host, tensor.device))
        return self, len(self._on_host) - 1

    @staticmethod
    def take(place: tuple[_Inputs, int]) -> Tensor:
        """The tensor on its device. The inputs of the block before set out, too."""
        own, index = place
        own.fetch()
        if own._before is not None and (before := own._before()) is not None:
            before.fetch()
        return own._arrived(index)

    def fetch(self) -> None:
        """Begin to copy all inputs back, unless they are on their way."""
        if not self._back:
            self._back = {index: self._sent(*kept) for index, kept in enumerate(self._on_host)}

    def _sent(self, host: Tensor, device: torch.device) -> Tensor:
        stream = self._stream_of(device)
        with _on(stream):
            return host.to(device, non_blocking=stream is not None)

    def _arrived(self, index: int) -> Tensor:
        tensor = self._back.pop(index)
        stream = self._stream_of(tensor.device)
        if stream is not None:
            current = torch.cuda.current_stream(tensor.device)
            current.wait_stream(stream)
            tensor.record_stream(current)
        return tensor


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
