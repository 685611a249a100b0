"""Block swap: blocks of a model wait in host memory, and are on the device only while they are used.

Each swapped block has a master on the host: all its weights in one piece of page-locked memory. A ring of a few buffers
on the device takes one block each. While a block computes, the next ones arrive on a stream of their own; events order
copies and computing, and the host waits for none. Weights that do not train never go back. Those that train are stepped
inside the backward pass, while their block is there, and then return to the master.

The swapper is attached from outside and acts by itself: in training, with and without recomputed activations, and
where no gradients are taken. It exchanges where parameters and buffers lie (`.data`); these stay the same objects. A
block that is not on the device has its weights in the master, so reading them gives true numbers at any time, once
`settle` was called.

Source of swapping layers: Rajbhandari et al. 2021, arXiv:2104.07857 (ZeRO-Infinity).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from library.memory.copy_lane import CopyLane, Mark, copy_lane, host_bytes
from library.memory.swap_plan import SwapPlan, swap_plan

_ALIGNMENT = 256  # bytes, as torch's allocator for CUDA has it


class BlockSwapper:
    """Swaps blocks of a model.

    Attributes:
        plan: Which.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        plan: SwapPlan,
        device: torch.device,
        *,
        num_streams: int = 2,
        lane: CopyLane | None = None,
    ) -> None:
        """Move every block to where it belongs. Nothing is fetched before the first pass.

        Args:
            blocks: All blocks, in the order of the model. They may lie anywhere; one after the other is moved.
            plan: Which are swapped.
            device: Where they compute.
            num_streams: How many inputs of a block, the first ones, are what the block before it gave.
            lane: For copies; None takes that of the device.
        """
        self.plan = plan
        self._device = device
        self._num_streams = num_streams
        self._lane = copy_lane(device) if lane is None else lane
        swapped = set(plan.swapped)
        for index, block in enumerate(blocks):
            if index not in swapped:
                block.to(device)
        self._homes = [_Home(blocks[index], device) for index in plan.swapped]
        # the memory of a buffer may have been given up by computing that goes on yet
        sizes = plan.buffer_sizes([home.size for home in self._homes])
        self._buffers = [_Buffer(size, device, self._lane) for size in sizes]
        for position, home in enumerate(self._homes):
            home.know(self._buffer(position).memory)
        self._current: int | None = None
        self._kept: dict[int, Tensor] = {}
        for position, index in enumerate(plan.swapped):
            block = blocks[index]
            block.forward = partial(self._run, position, block.forward)

    @property
    def host_bytes(self) -> int:
        """Of all masters."""
        return sum(home.size for home in self._homes)

    @property
    def unlocked_bytes(self) -> int:
        """Of masters that the system has not let be page-locked."""
        is_cuda = self._device.type == "cuda"
        return sum(home.size for home in self._homes if is_cuda and home.size and not home.master.is_pinned())

    @property
    def device_bytes(self) -> int:
        """Of the ring."""
        return sum(buffer.memory.numel() for buffer in self._buffers)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters of swapped blocks that train."""
        return [parameter for home in self._homes for parameter in home.trained]

    # Use

    def _run(self, position: int, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        """A block's forward pass: the weights are there, and in the backward pass they are there again."""
        if position in self._kept:
            return forward(*inputs, **named)
        is_recomputed = torch._C._current_graph_task_id() != -1  # inside the backward pass of something
        if is_recomputed:
            self._use(position, is_backward=True)
            return forward(*inputs, **named)
        has_backward = torch.is_grad_enabled()
        self._use(position, is_repeated=not has_backward)
        if has_backward:
            # inputs that blocks share stay as they are: their gradients are added up in an order of their own
            streams = _hooked(partial(self._release, position), inputs[: self._num_streams])
            inputs = (*streams, *inputs[self._num_streams :])
            outputs = _hooked(partial(self._begin_backward, position), forward(*inputs, **named))
        else:
            outputs = forward(*inputs, **named)
        self._release(position)
        return outputs

    def _begin_backward(self, position: int) -> None:
        self._use(position, is_backward=True)
        home = self._homes[position]
        home.is_changed = bool(home.trained)
        self._lane.hold(self._buffer(position).returned)

    def _use(self, position: int, *, is_backward: bool = False, is_repeated: bool = False) -> None:
        """Let computing wait until a block is there, and send for those that come next."""
        if self._current is not None and self._current != position:
            self._release(self._current)  # where nothing differentiates its inputs, no sign has told the end
        self._current = position
        self._fetch(position)
        self._lane.hold(self._buffer(position).arrived)
        for other in self.plan.ahead(position, is_backward=is_backward, is_repeated=is_repeated):
            if other not in self._kept:
                self._fetch(other)

    def _release(self, position: int) -> None:
        """All computing with a block has been asked for."""
        if self._current != position:
            return
        self._current = None
        buffer, home = self._buffer(position), self._homes[position]
        buffer.used = self._lane.computed()
        if home.is_changed:
            buffer.returned = self._lane.copy(home.master, home.away, after=buffer.used)
            home.is_changed = False

    def _fetch(self, position: int) -> None:
        buffer = self._buffer(position)
        if buffer.position == position:
            return
        self._empty(buffer)
        home = self._homes[position]
        buffer.arrived = self._lane.copy(home.away, home.master, after=buffer.used)
        buffer.position = position
        home.move_away()

    def _empty(self, buffer: _Buffer) -> None:
        if buffer.position is not None:
            self._homes[buffer.position].move_home()
            buffer.position = None

    def _buffer(self, position: int) -> _Buffer:
        return self._buffers[self.plan.buffer(position)]

    # Weights as a whole

    def settle(self) -> None:
        """Bring every block home: its weights may then be read and changed. The host waits for what is on its way."""
        if self._current is not None:
            self._release(self._current)
        for buffer in self._buffers:
            self._empty(buffer)
        self._lane.finish()

    @contextmanager
    def as_on_device(self) -> Iterator[None]:
        """A context in which weights that train have their shape and their device, and no numbers.

        For what looks at them to know where things belong that lie beside them.
        """
        self.settle()
        trained = self.trained
        own = [parameter.data for parameter in trained]
        for parameter in trained:
            parameter.data = torch.empty((), dtype=parameter.dtype, device=self._device).expand(parameter.shape)
        try:
            yield
        finally:
            for parameter, data in zip(trained, own, strict=True):
                parameter.data = data

    @contextmanager
    def swapping(self, number: int) -> Iterator[None]:
        """A context without gradients in which only so many blocks are swapped: the others stay on the device.

        Raises:
            RuntimeError: They do not fit; nothing has changed then.
        """
        self.settle()
        row = range(len(self._homes))
        still_swapped = set(swap_plan(len(row), number).swapped)
        try:
            for position in [each for each in row if each not in still_swapped]:
                home = self._homes[position]
                memory = torch.empty(home.size, dtype=torch.uint8, device=self._device)
                memory.copy_(home.master, non_blocking=True)
                home.move_to(memory)
                self._kept[position] = memory
            yield
        finally:
            for position in self._kept:
                self._homes[position].move_home()
            self._kept.clear()


class _Buffer:
    """Room for one block on the device.

    Attributes:
        memory: Flat bytes.
        position: Of the block that is there or on its way.
        arrived: Its weights are there.
        used: All computing with them is done.
        returned: What trained has been copied to the host, and may be changed again.
    """

    def __init__(self, size: int, device: torch.device, lane: CopyLane) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.position: int | None = None
        self.arrived: Mark = None
        self.used: Mark = lane.computed()
        self.returned: Mark = None


class _Home:
    """The master of one block on the host.

    Attributes:
        master: All parameters and buffers, in one piece.
        away: Its place on the device.
        size: Its bytes.
        trained: Parameters that train.
        is_changed: What is on the device is newer.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        """Move a block there."""
        distinct = {id(tensor): tensor for tensor in chain(block.parameters(), block.buffers())}
        self._tensors = list(distinct.values())
        self._places, self.size = _layout(self._tensors)
        self.away = torch.empty(0)
        self.trained = [tensor for tensor in self._tensors if isinstance(tensor, nn.Parameter) and tensor.requires_grad]
        self.is_changed = False
        self.master = host_bytes(self.size, device)
        self._at_home = self._views(self.master)
        for tensor, view in zip(self._tensors, self._at_home, strict=True):
            view.copy_(tensor.data)
            tensor.data = view
        self._when_away: list[Tensor] = []

    def know(self, memory: Tensor) -> None:
        """Take a place on the device, which may be larger than needed."""
        self.away = memory[: self.size]
        self._when_away = self._views(memory)  # made once: there are some 60 of them in a block

    def move_home(self) -> None:
        """Parameters and buffers lie in the master."""
        self._lie_in(self._at_home)

    def move_away(self) -> None:
        """Parameters and buffers lie in their place on the device, which gets the bytes of the master."""
        self._lie_in(self._when_away)

    def move_to(self, memory: Tensor) -> None:
        """The same with another place."""
        self._lie_in(self._views(memory))

    def _lie_in(self, views: Sequence[Tensor]) -> None:
        for tensor, view in zip(self._tensors, views, strict=True):
            tensor.data = view

    def _views(self, memory: Tensor) -> list[Tensor]:
        return [
            memory[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(self._tensors, self._places, strict=True)
        ]


def _layout(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins, and the bytes of all."""
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    return places, end


def _hooked(act: Callable[[], None], values: Any) -> Any:
    """The same values; `act` is called in the backward pass, once the gradients of all that have some are known.

    Args:
        act: Gets nothing.
        values: One tensor; or several, and others among them.
    """
    if isinstance(values, Tensor):
        return _hooked(act, (values,))[0]
    places = [index for index, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    if not places:
        return values
    passed = dict(zip(places, _Hook.apply(act, *(values[index] for index in places)), strict=True))
    return tuple(passed.get(index, value) for index, value in enumerate(values))


class _Hook(torch.autograd.Function):
    """Passes tensors and gradients on."""

    @staticmethod
    def forward(ctx: Any, act: Callable[[], None], *tensors: Tensor) -> Any:  # type: ignore[override]
        ctx.act = act
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        ctx.act()
        return (None, *gradients)
