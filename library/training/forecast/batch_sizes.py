"""The batches of a run by size: the one that takes the most memory, and the one that comes most often."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from library.records import Size
from library.training.planning import DataPlan


class BatchSize(NamedTuple):
    """So many pictures of a size."""

    size: Size
    number: int

    @property
    def area(self) -> int:
        """Pixels of all pictures."""
        return self.size.width * self.size.height * self.number

    @property
    def words(self) -> str:
        """For instance "2 at 1024x768"."""
        return f"{self.number} at {self.size}"


def batch_sizes(plan: DataPlan) -> Counter[BatchSize]:
    """How often each size of a batch comes in an epoch; what is left of a bucket makes one smaller batch."""
    samples: Counter[tuple[int, Size]] = Counter()
    for record, crop in zip(plan.training_records, plan.crops, strict=False):
        samples[record.dataset, crop.bucket] += record.repeats
    found: Counter[BatchSize] = Counter()
    for (dataset, bucket), count in samples.items():
        full, rest = divmod(count, plan.specs[dataset].batch_size)
        if full:
            found[BatchSize(bucket, plan.specs[dataset].batch_size)] += full
        if rest:
            found[BatchSize(bucket, rest)] += 1
    return found


def largest_batch(plan: DataPlan) -> BatchSize:
    """The one with the most pixels."""
    return max(batch_sizes(plan), key=lambda batch: (batch.area, batch.size))


def usual_batch(plan: DataPlan) -> BatchSize:
    """The one that comes most often."""
    found = batch_sizes(plan)
    return max(found, key=lambda batch: (found[batch], batch.area, batch.size))


def largest_picture(plan: DataPlan) -> Size:
    """Of all, those for validation included."""
    return max((crop.bucket for crop in plan.crops), key=lambda size: (size.width * size.height, size))
