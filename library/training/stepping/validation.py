"""The loss on pictures that are not trained: the same pictures, noise and timesteps every time.

The numbers do not depend on the number of processes or on what is cached: whole batches are dealt to the processes, and
the losses of all samples are added up in one order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from library.device import release_unused_memory
from library.errors import DatasetError
from library.memory_use import is_out_of_memory
from library.records import Batch, BatchPlan, PlannedItem, Size
from library.training.processes import in_all_processes
from library.training.sharding.unsharded import Unsharded
from library.training.stepping.batch_loss import BatchLoss

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from library.training.planning import DataPlan

NUM_TIMESTEPS = 4


def validation_timesteps(low: int, high: int) -> tuple[float, ...]:
    """Four timesteps, evenly inside the range that is trained: 200, 400, 600 and 800 of 0 to 1000."""
    step = (high - low) / (NUM_TIMESTEPS + 1)
    return tuple(float(math.floor(low + step * number)) for number in range(1, NUM_TIMESTEPS + 1))


def validation_batches(plan: DataPlan, max_batches: int | None = None) -> tuple[BatchPlan, ...]:
    """Batches of the pictures that are kept for validation, always in the same order.

    Args:
        plan: The data.
        max_batches: No more than these.
    """
    groups: dict[tuple[int, Size], list[int]] = {}
    for index in range(plan.num_training, len(plan.records)):
        groups.setdefault((plan.records[index].dataset, plan.crops[index].bucket), []).append(index)
    batches: list[tuple[Size, Sequence[int]]] = []
    for (dataset, size), records in sorted(groups.items()):
        length = plan.specs[dataset].batch_size
        batches += [(size, records[start : start + length]) for start in range(0, len(records), length)]
    return tuple(
        BatchPlan(epoch=0, index=index, step=0, size=size, items=tuple(PlannedItem(record, 0) for record in records))
        for index, (size, records) in enumerate(batches[:max_batches])
    )


@dataclass(frozen=True)
class Validation:
    """Computes the validation loss.

    Attributes:
        batches: Of `validation_batches`.
        make: Makes the batch of a plan.
        timesteps: At which each picture is looked at.
        seed: Keys the noise.
        shards: How the model lies in the processes. Where it is sharded, all of them compute in every round.
    """

    accelerator: Accelerator
    batches: Sequence[BatchPlan]
    make: Callable[[BatchPlan], Batch]
    timesteps: Sequence[float]
    seed: int
    shards: Unsharded = field(default_factory=Unsharded)

    @torch.no_grad()
    def __call__(self, batch_loss: BatchLoss) -> float:
        """Mean loss over all pictures and timesteps, the same number on every process.

        The random numbers of the training are left as they are.

        Raises:
            DatasetError: On every process, where one cannot read a picture, or has no memory for a single one.
        """
        state = torch.get_rng_state()
        try:
            rows, failures = self._rows(batch_loss), []
        except DatasetError as error:
            rows, failures = [], [str(error)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            rows, failures = [], ["there is not enough memory for a single picture"]
        finally:
            torch.set_rng_state(state)
        rows, failures = in_all_processes(self.accelerator, rows), in_all_processes(self.accelerator, failures)
        if failures:
            raise DatasetError(failures[0])
        losses = [loss for _, own in sorted(dict(rows).items()) for loss in own]
        return math.fsum(losses) / len(losses)

    def _rows(self, batch_loss: BatchLoss) -> list[tuple[int, list[float]]]:
        """Of the batches of this process: place and losses."""
        own = []
        for plan, batch in self._own_batches():
            try:
                losses = self._losses(batch_loss, batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.shards.refuse_to_go_on(error)
                losses = None
            if losses is None:  # outside of `except`, which would keep what the failed attempt has computed
                release_unused_memory(self.accelerator.device)
                parts = [batch.take(range(place, place + 1)) for place in range(len(batch.sample_ids))]
                losses = torch.cat([self._losses(batch_loss, part) for part in parts])
            own.append((plan.index, losses))
        return [(index, losses.tolist()) for index, losses in own]  # read once all is computed

    def _own_batches(self) -> Iterator[tuple[BatchPlan, Batch]]:
        """Those of this process. In the last round of a sharded model some repeat a batch of another one; where one
        process cannot read its batch, none goes on."""
        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        plans = list(self.batches[rank::number])
        if self.shards.is_sharded and len(plans) < -(-len(self.batches) // number):
            plans.append(self.batches[-1])
        for plan in plans:
            fault = batch = None
            try:
                batch = self.make(plan).to(self.accelerator.device)
            except DatasetError as error:
                fault = error
            if self.shards.any_failed(fault is not None) and fault is None:
                return
            if fault is not None or batch is None:
                raise fault or AssertionError("there is a batch or a fault")
            yield plan, batch

    def _losses(self, batch_loss: BatchLoss, batch: Batch) -> Tensor:
        """Of every sample at every timestep. Shape [B * T]."""
        losses = [batch_loss.at(batch, timestep, self.seed).losses for timestep in self.timesteps]
        return torch.stack(losses).T.flatten()
