"""The order of an epoch: which pictures form a batch, and which process takes it.

A plan depends on its arguments only. Resuming is a slice of a list, processes agree without talking, and neither the
number of processes nor the accumulation changes which pictures share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from library.records import BatchPlan, CropPlan, ImageRecord, PlannedItem, Size
from library.rng import python_stream


def sample_id(record: ImageRecord, repeat: int) -> str:
    """Name of one occurrence of a picture in an epoch; with the epoch it keys the sample's random draws."""
    return f"{record.key}#{repeat}"


def epoch_plan(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    batch_sizes: Sequence[int],
    seed: int,
    epoch: int,
    *,
    num_processes: int = 1,
    accumulation: int = 1,
) -> tuple[BatchPlan, ...]:
    """All batches of an epoch in the order of their use, for all processes together.

    Every record occurs exactly `repeats` times. A batch holds pictures of one bucket of one dataset; the last one of a
    bucket may be short. The first epoch begins with the largest batch, so that what does not fit into memory shows at
    once.

    Args:
        records: All pictures.
        crops: One for each record.
        batch_sizes: One for each dataset.
        seed: Of the run.
        epoch: Counted from 1.
        num_processes: Processes that share the epoch; only decides `step`.
        accumulation: Batches of one process per optimizer step; only decides `step`.
    """
    draw = python_stream(seed, "order", epoch)
    batches: list[tuple[Size, tuple[PlannedItem, ...]]] = []
    for (dataset, size), items in sorted(_group_by_bucket(records, crops).items()):
        draw.shuffle(items)
        length = batch_sizes[dataset]
        batches += [(size, tuple(items[start : start + length])) for start in range(0, len(items), length)]
    draw.shuffle(batches)
    if epoch == 1 and batches:
        batches.insert(0, batches.pop(_largest(batches)))
    per_step = num_processes * accumulation
    first_step = (epoch - 1) * _ceil_div(len(batches), per_step)
    return tuple(
        BatchPlan(epoch=epoch, index=index, step=first_step + index // per_step, size=size, items=items)
        for index, (size, items) in enumerate(batches)
    )


def for_process(plans: Sequence[BatchPlan], rank: int, num_processes: int) -> tuple[BatchPlan, ...]:
    """The batches of one process: every `num_processes`-th, starting at `rank`.

    All processes get equally many. Where one has no batch left it gets a copy of the last batch with weight 0.
    """
    mine = list(plans[rank::num_processes])
    if len(mine) < _ceil_div(len(plans), num_processes):
        mine.append(replace(plans[-1], index=len(mine) * num_processes + rank, weight=0.0))
    return tuple(mine)


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """How many optimizer steps a run has, and why.

    Attributes:
        images: Pictures, each counted once, without those of regularisation.
        repeats: The same for all these, or None where they differ.
        regularisation: Pictures of regularisation.
        regularisation_samples: How often they are used in an epoch.
        samples: Pictures times repeats: what an epoch uses.
        batch_sizes: The different batch sizes, ascending.
        batches_per_epoch: Over all processes.
        batches_per_process: Rounded up.
        steps_per_epoch: Optimizer steps; the last one of an epoch may have fewer batches.
        epochs: Rounded up.
        max_steps: Optimizer steps of the run.
    """

    images: int
    repeats: int | None
    regularisation: int = 0
    regularisation_samples: int = 0
    samples: int
    batch_sizes: tuple[int, ...]
    accumulation: int
    num_processes: int
    batches_per_epoch: int
    batches_per_process: int
    steps_per_epoch: int
    epochs: int
    max_steps: int

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """How many batches of one process each optimizer step of an epoch has."""
        full, rest = divmod(self.batches_per_process, self.accumulation)
        return (self.accumulation,) * full + ((rest,) if rest else ())

    def describe(self) -> str:
        """The whole sum in one line, for the start of a run."""
        times = "with repeats" if self.repeats is None else f"x {_count(self.repeats, 'repeat')}"
        sizes = " or ".join(str(size) for size in self.batch_sizes)
        per_step = self.accumulation * self.num_processes
        rounded = " (rounded up)" if self.batches_per_epoch % per_step else ""
        cut = " (the last one cut short)" if self.max_steps < self.epochs * self.steps_per_epoch else ""
        return (
            f"{_count(self.images, 'image')} {times}{self._regularisation()} = {_count(self.samples, 'sample')} -> "
            f"{_count(self.batches_per_epoch, 'batch')} of {sizes} / "
            f"{self.accumulation} accumulation x {_count(self.num_processes, 'process')} = "
            f"{_count(self.steps_per_epoch, 'step')} an epoch{rounded}, "
            f"{_count(self.epochs, 'epoch')}{cut} = {_count(self.max_steps, 'step')}"
        )

    def _regularisation(self) -> str:
        if not self.regularisation:
            return ""
        images = _count(self.regularisation, "regularisation image")
        return f" + {images} ({_count(self.regularisation_samples, 'sample')})"


def count_steps(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    batch_sizes: Sequence[int],
    *,
    num_processes: int,
    accumulation: int,
    max_steps: int,
    max_epochs: int | None = None,
) -> StepCount:
    """Count batches and optimizer steps without making a plan.

    Args:
        records: All pictures. Without any there are no steps.
        crops: One for each record.
        batch_sizes: One for each dataset.
        num_processes: Processes that share an epoch.
        accumulation: Batches of one process per optimizer step; counting starts anew every epoch.
        max_steps: Optimizer steps of the run, unless `max_epochs` is given.
        max_epochs: Length of the run in epochs.
    """
    groups = _group_by_bucket(records, crops)
    num_batches = sum(_ceil_div(len(items), batch_sizes[dataset]) for (dataset, _), items in groups.items())
    per_process = _ceil_div(num_batches, num_processes)
    per_epoch = _ceil_div(per_process, accumulation)
    steps = max_steps if max_epochs is None else max_epochs * per_epoch
    if not records:
        steps = 0
    repeats = {record.repeats for record in records if not record.is_reg}
    regular = [record for record in records if record.is_reg]
    return StepCount(
        images=len(records) - len(regular),
        repeats=repeats.pop() if len(repeats) == 1 else None,
        regularisation=len(regular),
        regularisation_samples=sum(record.repeats for record in regular),
        samples=sum(record.repeats for record in records),
        batch_sizes=tuple(sorted({batch_sizes[dataset] for dataset, _ in groups})),
        accumulation=accumulation,
        num_processes=num_processes,
        batches_per_epoch=num_batches,
        batches_per_process=per_process,
        steps_per_epoch=per_epoch,
        epochs=_ceil_div(steps, per_epoch) if steps else 0,
        max_steps=steps,
    )


def _group_by_bucket(
    records: Sequence[ImageRecord], crops: Sequence[CropPlan]
) -> dict[tuple[int, Size], list[PlannedItem]]:
    """All occurrences of all pictures, by dataset and bucket."""
    groups: dict[tuple[int, Size], list[PlannedItem]] = {}
    for index, (record, crop) in enumerate(zip(records, crops, strict=True)):
        group = groups.setdefault((record.dataset, crop.bucket), [])
        group += [PlannedItem(index, repeat) for repeat in range(record.repeats)]
    return groups


def _largest(batches: Sequence[tuple[Size, tuple[PlannedItem, ...]]]) -> int:
    """Which batch has most pixels; the first of equals."""
    pixels = [size.width * size.height * len(items) for size, items in batches]
    return pixels.index(max(pixels))


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _count(number: int, noun: str) -> str:
    """For instance "1 batch", "2 batches"."""
    plural = noun + ("es" if noun.endswith(("s", "tch")) else "s")
    return f"{number} {noun if number == 1 else plural}"
