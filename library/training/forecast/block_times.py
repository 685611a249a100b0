"""How long the blocks of a step take: a random block of each kind runs with its real sizes, within a time.

What takes longer than that is cut short: fewer passes, then fewer and smaller pictures. How long the real ones take is
then computed from the operations (multiplications of matrices) of either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from library.memory.blocks import blocks
from library.records import Size
from library.training.block_timing import BlockTime, take_gradients, time_block
from library.training.forecast.batch_sizes import BatchSize
from library.training.forecast.block_calls import Call
from library.training.forecast.counts import Counts
from library.training.forecast.device_memory import DeviceMemory
from library.training.forecast.fake_passes import all_parameters, modules_of
from library.training.forecast.outline import outline_of
from library.training.sampling.sampling import unchanged_random_state

if TYPE_CHECKING:
    from library.training.trainer import Trainer

_ENOUGH = 4  # passes, the first of which is not counted
_LEAST_SIDE = 64  # pixels
_PATTERN = 2**16  # random numbers that are repeated to fill a weight
_MOST_STEPPED = 2**25  # numbers that an optimizer steps to be timed


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        batch: That it is about.
        blocks: Passes of all blocks, for one batch.
        forward: Of these the forward pass.
        optimizer: Once a step.
    """

    batch: BatchSize
    blocks: float
    forward: float
    optimizer: float

    def of(self, batch: BatchSize) -> float:
        """Passes with another batch, by its pixels."""
        return self.blocks * batch.area / self.batch.area


@dataclass(frozen=True)
class Measured:
    """What was timed.

    Attributes:
        steps: One for each batch.
        cut: How it was cut short, in words; empty where it was not.
    """

    steps: Sequence[StepTime]
    cut: str


def measure_steps(
    trainer: Trainer, counts: Counts, batches: Sequence[BatchSize], device: torch.device, seconds: float
) -> Measured:
    """Time the blocks of a step.

    Args:
        trainer: Its data is planned and its files are inspected. It is only asked.
        counts: Of its options.
        batches: What steps are made with.
        device: Where.
        seconds: How long it may take in all; each kind of block runs at least once.
    """
    end = perf_counter() + seconds
    row, kinds = list(blocks(outline_of(trainer, counts.formats).denoiser)), counts.kinds()
    timer, times, per_number = _Timer(counts, device), {}, 0.0
    numbers = list(Counter(kinds))
    for place, index in enumerate(numbers):
        block, share = row[index], (end - perf_counter()) / (len(numbers) - place)
        with unchanged_random_state(device):
            fill(block, device)
            times[index] = timer.of_kind(block, index, batches, share)
        trained = [parameter for parameter in all_parameters(block) if parameter.requires_grad]
        if trained and not per_number:
            per_number = _optimizer_seconds(trainer, counts, trained)
        block.to("meta")
    again = _recomputed(trainer, len(kinds))
    steps = []
    for place, batch in enumerate(batches):
        own = [times[kind][place] for kind in kinds]
        whole = sum(time.total + time.forward * (i in again) for i, time in enumerate(own))
        forward = sum(time.forward for time in own)
        steps.append(StepTime(batch, whole, forward, per_number * counts.trained.count))
    return Measured(steps, timer.cut)


class _Timer:
    """Times blocks.

    Attributes:
        cut: How it was cut short, in words.
    """

    def __init__(self, counts: Counts, device: torch.device) -> None:
        self.counts, self.device = counts, device
        self._rate: float | None = None  # seconds for an operation of the forward pass, both passes together
        self._smallest: BatchSize | None = None
        self._is_short = False

    @property
    def cut(self) -> str:
        if self._smallest is not None:
            return f"cut short: computed from blocks that ran with {self._smallest.words}, so rough figures"
        return "cut short after a pass or two of a block: rough figures" if self._is_short else ""

    def of_kind(self, block: nn.Module, index: int, batches: Sequence[BatchSize], seconds: float) -> list[BlockTime]:
        """Times with each of the batches, the block being of the kind of block `index`."""
        end, found = perf_counter() + seconds, []
        weights = [parameter for parameter in all_parameters(block) if parameter.requires_grad]
        if self._rate is None:
            least = list(smaller(batches[0]))[-1]
            with self._autocast():
                self._pass(block, self._call(least, index), weights)
                time = self._pass(block, self._call(least, index), weights)
            self._rate = time.total / self._operations(least, index)
        for place, batch in enumerate(batches):
            share = (end - perf_counter()) / (len(batches) - place)
            chosen = self._affordable(batch, index, share)
            with self._autocast():
                time = self._time(block, self._call(chosen, index), weights, share)
            self._rate = time.total / self._operations(chosen, index)
            found.append(_scaled(time, self._operations(batch, index) / self._operations(chosen, index)))
        return found

    def _affordable(self, batch: BatchSize, index: int, seconds: float) -> BatchSize:
        """The batch itself or, where one pass of it takes too long, the largest smaller one."""
        assert self._rate is not None
        for chosen in smaller(batch):
            if self._rate * self._operations(chosen, index) <= seconds:
                break
        if chosen != batch and (self._smallest is None or chosen.area < self._smallest.area):
            self._smallest = chosen
        return chosen

    def _time(self, block: nn.Module, call: Call, weights: Sequence[Parameter], seconds: float) -> BlockTime:
        first = self._pass(block, call, weights)
        left = seconds - first.total
        if _ENOUGH * first.total <= left:
            run = partial(time_block, block, call.arguments, named=call.named, is_trained=True, weights=weights)
            return run(seconds=left - first.total)
        self._is_short = True
        return first if first.total > left else self._pass(block, call, weights)

    def _pass(self, block: nn.Module, call: Call, weights: Sequence[Parameter]) -> BlockTime:
        began = _now(self.device)
        outputs = block(*call.arguments, **call.named)
        between = _now(self.device)
        take_gradients(outputs, [*call.arguments, *call.named.values(), *weights])
        return BlockTime(between - began, _now(self.device) - between)

    def _call(self, batch: BatchSize, index: int) -> Call:
        """With random numbers."""
        call = self.counts.block_calls(batch)[index]
        named = {name: _random(each, self.device) for name, each in call.named.items()}
        return replace(call, arguments=tuple(_random(each, self.device) for each in call.arguments), named=named)

    def _operations(self, batch: BatchSize, index: int) -> int:
        return self.counts.block_calls(batch)[index].operations

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.counts.formats.autocast
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None, cache_enabled=False)


def smaller(batch: BatchSize) -> Iterator[BatchSize]:
    """The batch, then half of its pictures and so on, then one with sides half as long and so on."""
    yield batch
    while batch.number > 1:
        batch = BatchSize(batch.size, batch.number // 2)
        yield batch
    while (half := Size(*map(_half, batch.size))) != batch.size:
        batch = BatchSize(half, 1)
        yield batch


def _half(side: int) -> int:
    return max(_LEAST_SIDE, side // 2 // _LEAST_SIDE * _LEAST_SIDE) if side > _LEAST_SIDE else side


def _scaled(time: BlockTime, factor: float) -> BlockTime:
    return BlockTime(time.forward * factor, time.backward * factor)


def fill(block: nn.Module, device: torch.device) -> None:
    """Give a block on the meta device random weights of a usual size, and what is attached to it, too."""
    for module in modules_of(block):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = Parameter(_random(parameter, device), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = _random(buffer, device)


def _random(like: Any, device: torch.device) -> Any:
    """Numbers of a usual size in the shape of a tensor; other values as they are. Few are drawn, and repeated."""
    if not isinstance(like, Tensor):
        return like
    number = max(1, min(_PATTERN, like.numel()))
    if not like.dtype.is_floating_point:
        pattern = torch.randint(0, 100, (number,), device=device)
    else:
        scale = like.shape[-1] ** -0.5 if isinstance(like, Parameter) and like.ndim > 1 else 1.0
        pattern = torch.randn(number, device=device) * scale
    made = pattern.to(like.dtype).repeat(-(-like.numel() // number))[: like.numel()].view(like.shape)
    return made.requires_grad_(like.requires_grad)


def _optimizer_seconds(trainer: Trainer, counts: Counts, weights: Sequence[Parameter]) -> float:
    """Of a step, for each number that trains."""
    stepping = DeviceMemory(counts, trainer.options, 1, False, False).optimizer
    own: list[Parameter] = []
    for weight in weights:
        if not own or sum(each.numel() for each in own) + weight.numel() <= _MOST_STEPPED:
            own.append(Parameter(weight.detach().clone()))
    optimizer, took = stepping.make(own), 0.0
    for _ in range(2):  # the first step makes the state
        for weight in own:
            weight.grad = torch.full_like(weight, 1e-3)
        began = _now(own[0].device)
        optimizer.step()
        took = _now(own[0].device) - began
    return took / sum(weight.numel() for weight in own)


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return perf_counter()


def _recomputed(trainer: Trainer, depth: int) -> set[int]:
    training = trainer.options.training
    return set(range(0, depth, training.gradient_checkpointing_every_n_blocks)) if training.recomputes else set()
