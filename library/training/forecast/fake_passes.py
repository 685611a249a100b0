"""Both passes of a denoiser over tensors without numbers, counted block by block.

The passes are the real ones, by torch's autograd, over fake tensors: what lives is counted operation by operation
(`library/memory/live_memory.py`). Of blocks that are alike and stand in lists that may be shortened one is run, which
is what lets a model of any size be counted in seconds. What a kernel takes for itself is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.utils._pytree import tree_leaves

from library.memory.blocks import around_blocks, block_stacks, blocks
from library.memory.fused_backward import BackwardParts, by_block, each_alone
from library.memory.live_memory import LiveMemory
from library.training.forecast.segments import Segment
from networks.lora_linear import is_plain_frozen

EACH, BLOCK = "each", "block"  # how the optimizer steps inside the backward pass
Inputs = Mapping[str, Any]  # tensors, and mappings of such


@dataclass(frozen=True)
class Counted:
    """What the passes of a denoiser take, from before its blocks to the loss.

    Attributes:
        head: Before the blocks.
        blocks: Each block.
        tail: Behind them.
    """

    head: Segment
    blocks: tuple[Segment, ...]
    tail: Segment

    @property
    def segments(self) -> tuple[Segment, ...]:
        """In the order of the forward pass."""
        return (self.head, *self.blocks, self.tail)


@dataclass(frozen=True)
class Passes:
    """How the passes are made.

    Attributes:
        autocast: Dtype of the arithmetic; None for that of the weights.
        recomputes: Every block is computed again in the backward pass.
        stepping: EACH or BLOCK where the optimizer steps inside the backward pass.
        has_backward: Else the forward pass is made without gradients.
    """

    autocast: torch.dtype | None = None
    recomputes: bool = False
    stepping: str = ""
    has_backward: bool = True

    def context(self) -> AbstractContextManager[Any]:
        """Precision and gradients."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast("cpu", self.autocast, cache_enabled=False)


class FakeDenoiser:
    """A denoiser on fake tensors.

    Args:
        outline: On the meta device, with whatever is attached to its layers. It is changed and of no use afterwards.
        is_whole: Run every block, and not one of each kind.

    Attributes:
        kinds: For each block what tells it from others, see `block_kinds`.
        models: For each block the first one that takes what it takes.
        chosen: {index: block} of those that are run.
    """

    def __init__(self, outline: nn.Module, *, is_whole: bool = False) -> None:
        self.model, self.mode = outline, FakeTensorMode(allow_non_fake_inputs=True)
        row = list(blocks(outline))
        self.kinds = block_kinds(outline, row)
        self.models = list(range(len(row))) if is_whole else _shortened(outline, row, self.kinds)
        self.chosen = {index: row[index] for index in self.models}
        self._places = [list(self.chosen).index(model) for model in self.models]  # among those that are run
        with self.mode:
            fake(outline)

    def count(self, inputs: Callable[[], Inputs], passes: Passes) -> Counted:
        """Run both passes.

        Args:
            inputs: Makes the arguments of the denoiser; none needs a gradient.
            passes: How.
        """
        model: Any = self.model
        model.gradient_checkpointing = passes.recomputes
        with self.mode:
            given = inputs()
            tensors = [*all_parameters(model), *model.buffers(), *tensors_of(given)]
            recorder = _Recorder(LiveMemory(tensors), list(self.chosen.values()))
            with recorder.hooked():
                segments = _run(model, given, passes, recorder)
        head, *found, tail = segments
        return Counted(head, tuple(found[place] for place in self._places), tail)


def _run(model: nn.Module, inputs: Inputs, passes: Passes, recorder: _Recorder) -> list[Segment]:
    parts = _parts(model, passes.stepping)
    listener = BackwardParts(parts, lambda _: None) if parts else None
    with recorder.live:
        recorder.begin()
        with passes.context(), torch.set_grad_enabled(passes.has_backward):
            output = model(**inputs)
        prediction = output if isinstance(output, Tensor) else output[0]
        del output
        loss = (prediction.float() - 1).square().mean()
        del prediction
        recorder.end_forward()
        if passes.has_backward and loss.requires_grad:
            with listener.listening() if listener else nullcontext():
                loss.backward()
            recorder.end_backward()
    for parameter in all_parameters(model):
        parameter.grad = None
    if listener:
        listener.close()
    return recorder.segments()


def _parts(model: nn.Module, stepping: str) -> list[list[Parameter]]:
    trained = [parameter for parameter in all_parameters(model) if parameter.requires_grad]
    if not stepping:
        return []
    return each_alone(trained) if stepping == EACH else by_block([model], trained)


@dataclass
class _Stretch:
    """Bytes at the beginning, at the end and at most, of forward and of backward pass."""

    forward: tuple[int, int, int] = (0, 0, 0)
    backward: tuple[int, int, int] = (0, 0, 0)
    gradients: int = 0

    def segment(self) -> Segment:
        begin, end, most = self.forward
        back_begin, back_end, back_most = self.backward
        return Segment(end - begin, most - begin, back_end - back_begin, back_most - back_begin, self.gradients)


@dataclass
class _Recorder:
    """Notes what lives where a block begins and ends, in both passes.

    A block's backward pass ends where the first gradient of one of its inputs is complete: autograd runs what was
    computed last first, so nothing of the block is left then.
    """

    live: LiveMemory
    blocks: Sequence[nn.Module]
    _stretches: list[_Stretch] = field(default_factory=list)
    _now: int = 0
    _start: int = 0
    _is_forward: bool = True
    _passed: set[int] = field(default_factory=set)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A context in which the blocks tell of themselves."""
        handles = []
        for number, block in enumerate(self.blocks, start=1):
            handles.append(block.register_forward_pre_hook(self._entering(number), with_kwargs=True))
        handles.append(self.blocks[-1].register_forward_hook(self._leaving(len(self.blocks) + 1)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self) -> None:
        """Before the forward pass."""
        self._stretches = [_Stretch() for _ in range(len(self.blocks) + 2)]
        self._now, self._start = 0, self.live.now
        self.live.peak = self.live.now

    def end_forward(self) -> None:
        """After it; the backward pass follows."""
        self._close()
        self._is_forward = False

    def end_backward(self) -> None:
        """After it."""
        self._close()

    def segments(self) -> list[Segment]:
        """Of all stretches."""
        return [stretch.segment() for stretch in self._stretches]

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_forward:
                self._move(number)
                self._listen(number, (*args, *kwargs.values()))

        return enter

    def _leaving(self, number: int) -> Callable[..., None]:
        def leave(_: nn.Module, __: Any, output: Any) -> None:
            if self._is_forward:
                self._move(number)
                self._listen(number, output if isinstance(output, tuple) else (output,))

        return leave

    def _listen(self, number: int, tensors: Sequence[Any]) -> None:
        """When a gradient of these is complete, the backward pass of stretch `number` is over."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(lambda _, number=number: self._passing(number))

    def _passing(self, number: int) -> None:
        if number not in self._passed:
            self._passed.add(number)
            self._move(number - 1)

    def _move(self, number: int) -> None:
        """Stretch `number` begins."""
        self._close()
        self._now = number

    def _close(self) -> None:
        noted = (self._start, self.live.now, self.live.peak)
        stretch = self._stretches[self._now]
        if self._is_forward:
            stretch.forward = noted
        else:
            stretch.backward = noted
        self._start = self.live.peak = self.live.now


def block_kinds(model: nn.Module, row: Sequence[nn.Module]) -> list[tuple[Any, ...]]:
    """For each block what tells it from others: its shapes, what is attached to it, whether it is first or last, and
    whether gradients go on to what is before it."""
    kinds: list[tuple[Any, ...]] = []
    is_reached = any(_trains(module) for module in around_blocks(model))
    for index, block in enumerate(row):
        kinds.append((index == 0, index == len(row) - 1, is_reached, type(block), *_signature(block)))
        is_reached = is_reached or _trains(block)
    return kinds


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in all_parameters(module))


def _shortened(model: nn.Module, row: Sequence[nn.Module], kinds: Sequence[tuple[Any, ...]]) -> list[int]:
    """Leave in each list of blocks only one of those that are alike; for each block of the row the one that is left.

    A block is followed by what is behind its list, if it is the last one of it.
    """
    models, seen = list(range(len(row))), dict[tuple[Any, ...], int]()
    place = {id(block): index for index, block in enumerate(row)}
    for level, stack in block_stacks(model):
        own = [place[id(block)] for block in stack]
        for index in own:
            key = (level, index == own[-1] and index, *kinds[index])
            models[index] = seen.setdefault(key, index)
        left = [row[index] for index in own if models[index] == index]
        del stack[:]
        stack.extend(left)
    return models


def _signature(block: nn.Module) -> Iterator[tuple[Any, ...]]:
    for name, module in block.named_modules():
        for own in (module, *attached(module)):
            recurse = own is not module
            for key, weight in (*own.named_parameters(recurse=recurse), *own.named_buffers(recurse=recurse)):
                yield name, key, tuple(weight.shape), weight.requires_grad


def attached(layer: nn.Module) -> Iterator[nn.Module]:
    """What has put its own `forward` in the place of a layer's."""
    owner = getattr(layer.__dict__.get("forward"), "__self__", None)
    if isinstance(owner, nn.Module) and owner is not layer:
        yield owner


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """All tensors among the arguments of a denoiser."""
    return [value for value in tree_leaves(dict(inputs)) if isinstance(value, Tensor)]


def all_parameters(model: nn.Module) -> list[Parameter]:
    """Of the model and of what is attached to it."""
    return [weight for module in modules_of(model) for weight in module._parameters.values() if weight is not None]


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """All modules of a model and of what is attached to it."""
    for module in model.modules():
        yield module
        for owner in attached(module):
            yield from owner.modules()


def fake(model: nn.Module) -> None:
    """Give all weights of a model on the meta device fake ones on the CPU; for inside of a FakeTensorMode."""
    for module in modules_of(model):
        if is_plain_frozen(module):  # an adapter asks; a fake weight of its own class would not look plain to it
            module.__dict__["frozen_weight"] = _weight_of(module)
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                own = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                module._parameters[name] = Parameter(own, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _weight_of(layer: nn.Module) -> Callable[[], tuple[Any, ...]]:
    return lambda: (layer.weight,)
