"""How long a run takes, foretold from random blocks of its real sizes: what `--dry_run=measure` does.

One block of each kind gets random weights on the device, and its real passes are timed. What is outside of the blocks
(embedders, loss, pictures that are read meanwhile) takes a few hundredths of a step and is not timed; the optimizer is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from library.device import choose_device
from library.training.block_timing import BlockTime, time_block
from library.training.forecast.batch_sizes import BatchSize, batch_sizes, largest_batch, usual_batch
from library.training.forecast.counts import Counts
from library.training.forecast.device_memory import DeviceMemory
from library.training.forecast.fake_passes import all_parameters, block_list
from library.training.forecast.outline import outline_of
from library.training.forecast.words import wrapped
from library.training.sampling.sampling import unchanged_random_state

if TYPE_CHECKING:
    from library.training.trainer import Trainer

SECONDS = 16.0  # of measuring in all; making weights comes on top
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        batch: That it was measured with.
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


def time_lines(trainer: Trainer, counts: Counts) -> Iterator[str]:
    """The section about time."""
    device = choose_device()
    batches = dict.fromkeys((usual_batch(trainer.plan), largest_batch(trainer.plan)))
    yield f"TIME, from random blocks on {device.type}"
    found = []
    for batch in batches:
        time = measure_step(trainer, counts, batch, device, SECONDS / len(batches))
        found.append(time)
        whole = time.blocks * _accumulation(trainer) + time.optimizer
        images = batch.number * _accumulation(trainer) * trainer.plan.settings.num_processes
        yield from wrapped(f"a step with batches of {batch.words}: {whole:.3g} s, {images / whole:.3g} images a second")
    seconds = run_seconds(trainer, found[0])
    yield from wrapped(f"all {trainer.plan.steps.max_steps} steps: about {duration(seconds)}")
    if extra := sample_seconds(trainer, found[0]):
        yield from wrapped(f"sample pictures, without the VAE: about {duration(extra)} more")
    yield from wrapped(_left_out(trainer))


def measure_step(trainer: Trainer, counts: Counts, batch: BatchSize, device: torch.device, seconds: float) -> StepTime:
    """Time the blocks of a step.

    Args:
        trainer: Its data is planned and its files are inspected. It is only asked.
        counts: Of its options.
        batch: What a step is made with.
        device: Where.
        seconds: About how long to measure.
    """
    outline = outline_of(trainer, counts.formats)
    kinds = counts.kinds()
    blocks, dtype = block_list(outline.denoiser), counts.formats.autocast
    numbers = Counter(kinds)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)
    times: dict[int, BlockTime] = {}
    per_number = 0.0
    for index in numbers:
        block = blocks[index]
        with unchanged_random_state(device):
            fill(block, device)
            inputs = [_random(each, device) for each in counts.block_inputs(batch, index)]
        trained = [parameter for parameter in all_parameters(block) if parameter.requires_grad]
        with autocast:
            times[index] = time_block(block, inputs, seconds=seconds / len(numbers), is_trained=True, weights=trained)
        if trained:
            per_number = max(per_number, _optimizer_seconds(trainer, counts, trained))
        block.to("meta")
    again = _recomputed(trainer, len(kinds))
    forward = sum(times[kind].forward for kind in kinds)
    whole = sum(times[kind].total + times[kind].forward * (i in again) for i, kind in enumerate(kinds))
    return StepTime(batch, whole, forward, per_number * counts.trained.count)


def fill(block: nn.Module, device: torch.device) -> None:
    """Give a block on the meta device random weights of a usual size, and what is attached to it, too."""
    from library.training.forecast.fake_passes import modules_of

    for module in modules_of(block):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = Parameter(_random(parameter, device), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = _random(buffer, device)


def _random(like: Any, device: torch.device) -> Any:
    """Numbers of a usual size in the shape of a tensor; other values as they are."""
    if not isinstance(like, Tensor):
        return like
    if not like.dtype.is_floating_point:
        return torch.randint(0, 100, like.shape, device=device).to(like.dtype)
    scale = like.shape[-1] ** -0.5 if isinstance(like, Parameter) and like.ndim > 1 else 1.0
    made = (torch.randn(like.shape, device=device) * scale).to(like.dtype)
    return made.requires_grad_(like.requires_grad)


def _optimizer_seconds(trainer: Trainer, counts: Counts, weights: Sequence[Parameter]) -> float:
    """Of a step, for each number that trains."""
    stepping = DeviceMemory(counts, trainer.options, 1, False, False).optimizer
    own = [Parameter(weight.detach().clone()) for weight in weights]
    optimizer, took = stepping.make(own), 0.0
    for _ in range(2):  # the first step makes the state
        for weight in own:
            weight.grad = torch.full_like(weight, 1e-3)
        _wait(own[0].device)
        began = perf_counter()
        optimizer.step()
        _wait(own[0].device)
        took = perf_counter() - began
    return took / sum(weight.numel() for weight in own)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _recomputed(trainer: Trainer, depth: int) -> set[int]:
    training = trainer.options.training
    return set(range(0, depth, training.gradient_checkpointing_every_n_blocks)) if training.recomputes else set()


def _accumulation(trainer: Trainer) -> int:
    return int(trainer.options.training.gradient_accumulation_steps)


def run_seconds(trainer: Trainer, time: StepTime) -> float:
    """Of all steps: each size of a batch takes its share."""
    found, steps = batch_sizes(trainer.plan), trainer.plan.steps
    epoch = sum(time.of(batch) * count for batch, count in found.items()) / trainer.plan.settings.num_processes
    return (epoch / steps.steps_per_epoch + time.optimizer) * steps.max_steps


def sample_seconds(trainer: Trainer, time: StepTime) -> float:
    """Of all sample pictures while training."""
    sampling, steps = trainer.options.sampling, trainer.plan.steps
    if not sampling.is_on:
        return 0.0
    if sampling.sample_every_n_epochs:
        events = steps.epochs // sampling.sample_every_n_epochs
    else:
        events = steps.max_steps // (sampling.sample_every_n_steps or steps.max_steps + 1)
    events += int(sampling.sample_at_first)
    areas = (p.width * p.height * len(p.texts) * p.sample_steps for p in trainer.prompts)
    return events * sum(areas) * time.forward / time.batch.area


def duration(seconds: float) -> str:
    """For instance "2 h 13 min"."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / _MINUTE), _HOUR // _MINUTE)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _left_out(trainer: Trainer) -> str:
    left = ["caches that have to be filled"]
    cache, options = trainer.options.cache, trainer.options
    if not cache.caches_latents or not cache.caches_text or trainer.trained_encoders():
        left.append("VAE and text encoders that run in every step")
    if options.memory.swaps:
        left.append("waiting for swapped blocks")
    if options.compute.torch_compile:
        left.append("what compiling gains")
    if trainer.plan.validation_records:
        left.append("validation")
    return f"not in it: {', '.join(left)}"
