"""How long a run takes, foretold from random blocks of its real sizes: what `--dry_run=measure` does.

One block of each kind gets random weights on the device, and its real passes are timed (`block_times.py`). What is
outside of the blocks (embedders, loss, pictures that are read meanwhile) takes a few hundredths of a step and is not
timed; the optimizer is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from library.device import choose_device
from library.training.forecast.batch_sizes import batch_sizes, largest_batch, usual_batch
from library.training.forecast.block_times import StepTime, measure_steps
from library.training.forecast.counts import Counts
from library.training.forecast.words import wrapped

if TYPE_CHECKING:
    from library.training.trainer import Trainer

SECONDS = 18.0  # of measuring in all; a pass that is begun by then is finished
_MINUTE, _HOUR = 60, 3600


def time_lines(trainer: Trainer, counts: Counts, seconds: float = SECONDS) -> Iterator[str]:
    """The section about time, which takes about so many seconds to make."""
    device = choose_device()
    batches = list(dict.fromkeys((usual_batch(trainer.plan), largest_batch(trainer.plan))))
    yield f"TIME, from random blocks on {device.type}"
    measured = measure_steps(trainer, counts, batches, device, seconds)
    for time in measured.steps:
        batch = time.batch
        whole = time.blocks * _accumulation(trainer) + time.optimizer
        images = batch.number * _accumulation(trainer) * trainer.plan.settings.num_processes
        yield from wrapped(f"a step with batches of {batch.words}: {whole:.3g} s, {images / whole:.3g} images a second")
    run = duration(run_seconds(trainer, measured.steps[0]))
    yield from wrapped(f"all {trainer.plan.steps.max_steps} steps: about {run}")
    if extra := sample_seconds(trainer, measured.steps[0]):
        yield from wrapped(f"sample pictures, without the VAE: about {duration(extra)} more")
    yield from wrapped(_left_out(trainer))
    if measured.cut:
        yield from wrapped(measured.cut)


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
