"""One optimizer step: forward and backward over its batches, one exchange between processes, one update.

Nothing here waits for the device where the optimizer can pass over a step by itself. What has to be known of a step is
put into one small tensor, which is read later (`step_log.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from library.device import release_unused_memory
from library.errors import EnvironmentFault
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.records import Batch, Size
from library.training.optimization.lean_optimizer import bare_optimizer
from library.training.optimization.optimizer_modes import skips_on_device
from library.training.sharding.unsharded import Unsharded
from library.training.stepping.step_log import Sample

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim.lr_scheduler import LRScheduler

    from library.training.stepping.batch_loss import BatchLoss

logger = get_logger(__name__)

MAX_OVERFLOWS = 25  # in a row, by which the scale falls from 65536 to far below 1: more is no matter of scale


@dataclass
class OptimizerStep:
    """Makes steps.

    Attributes:
        optimizer: As accelerate has prepared it.
        accumulation: Batches of a full step. Each batch counts 1 / (accumulation x processes), in a short last group
            too, so every picture weighs the same in an epoch.
        read_rates: Gives the learning rates that the optimizer has used, {"lr/<part>": rate}.
        max_grad_norm: Gradients are scaled down to this norm; 0 means never.
        rates: Of the last step.
        shards: How the model lies in the processes.
        num_overflows: Steps in a row up to the last one that loss scaling has passed over.
        num_parts: {(bucket, samples): into how many parts such a batch is split, because it did not fit as a whole}.
        is_halfway: The optimizer has begun to change weights in a step that is not counted yet.
    """

    accelerator: Accelerator
    batch_loss: BatchLoss
    optimizer: Any
    schedule: LRScheduler
    accumulation: int
    max_grad_norm: float
    read_rates: Callable[[], dict[str, float]]
    rates: dict[str, float] = field(default_factory=dict)
    shards: Unsharded = field(default_factory=Unsharded)
    num_overflows: int = 0
    num_parts: dict[tuple[Size, int], int] = field(default_factory=dict)
    is_halfway: bool = False

    @property
    def parameters(self) -> list[Parameter]:
        """What trains."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(
        self, batches: Sequence[Batch], *, is_stop_asked: bool, has_failed: bool
    ) -> tuple[list[Sample], Tensor]:
        """Make a step.

        Args:
            batches: Of this process; none where it has failed, which makes every process pass over the step.
            is_stop_asked: Whether this process has been asked to stop.
            has_failed: Whether this process cannot go on.

        Returns:
            The samples, and the numbers for `StepLog.push`.

        Raises:
            EnvironmentFault: A single sample does not fit into memory.
        """
        samples, losses, total = self._gradients(batches)
        told = (sum(batch.weight for batch in batches), is_stop_asked, has_failed)
        seen = torch.stack([total, *(torch.full_like(total, float(value)) for value in told)])
        parameters = self.parameters
        self.shards.average(self.accelerator, parameters, [seen])
        loss = seen[0] / seen[1]
        norm = self._clip(parameters)
        is_scaled = self.accelerator.scaler is not None
        # with loss scaling, gradients overflow now and then, and the scaler passes over these steps by itself
        is_good = torch.isfinite(loss) & (seen[3] == 0) & (torch.isfinite(norm) | is_scaled)
        self.is_halfway = True
        self._step_if(is_good)
        self.rates = self.read_rates()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count_overflows(norm)
        is_bad = ~is_good if self.num_overflows <= MAX_OVERFLOWS else torch.ones_like(is_good)
        head = torch.stack([loss, norm.float(), is_bad.float(), seen[2], seen[3]])
        return samples, torch.cat([head, losses])

    def _count_overflows(self, norm: Tensor) -> None:
        """Steps in a row that loss scaling has passed over; it waits for the device anyway."""
        if self.accelerator.scaler is not None:
            self.num_overflows = 0 if bool(torch.isfinite(norm)) else self.num_overflows + 1

    def _gradients(self, batches: Sequence[Batch]) -> tuple[list[Sample], Tensor, Tensor]:
        """Gradients of the batches; a batch that does not fit is split, and the step begun anew.

        Returns:
            The samples, their losses, and the sum of the weighted losses of the batches.
        """
        while True:
            try:
                return self._try_gradients(batches)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.shards.refuse_to_go_on(error)
                message = str(error).partition("\n")[0]
            self.optimizer.zero_grad(set_to_none=True)
            release_unused_memory(self.accelerator.device)
            self._split_more(message)

    def _try_gradients(self, batches: Sequence[Batch]) -> tuple[list[Sample], Tensor, Tensor]:
        device = self.accelerator.device
        total = torch.zeros((), device=device)
        samples: list[Sample] = []
        losses = []
        for batch in batches:
            for part, share in self._parts(batch):
                self._running = part
                own = self.batch_loss(part.to(device))
                loss = own.losses.mean() * (share * batch.weight)
                self.accelerator.backward(loss / self.accumulation)
                total = total + loss.detach()
                losses.append(own.losses.detach().float())
                items = zip(part.plan.items, part.sample_ids, own.timesteps.tolist(), strict=True)
                samples += [Sample(item.record, name, timestep) for item, name, timestep in items]
        return samples, torch.cat(losses) if losses else torch.zeros(0, device=device), total

    def _parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The batch in as many parts as it needs, each with its share of the samples."""
        length = len(batch.sample_ids)
        number = 1 if self.shards.is_sharded else min(length, self.num_parts.get((batch.plan.size, length), 1))
        parts = [range(length)[index * length // number : (index + 1) * length // number] for index in range(number)]
        return [(batch if number == 1 else batch.take(part), len(part) / length) for part in parts]

    def _split_more(self, message: str) -> None:
        """Halve the parts of batches like the one that ran out of memory."""
        plan = self._running.plan
        whole = self._running.num_whole or len(self._running.sample_ids)
        key = plan.size, whole
        now = self.num_parts.get(key, 1)
        if now >= whole:
            raise EnvironmentFault(
                f"out of memory with a single picture at {plan.size} ({message}). Use --fit with the memory of "
                "the GPU, which chooses settings; or --gradient_checkpointing, --blocks_to_swap, a lower resolution, "
                "--mixed_precision bf16, or train less of the model or with a lower rank."
            )
        self.num_parts[key] = min(whole, now * 2)
        logger.warning(
            "out of memory with %d pictures at %s: such batches are split in %d from now on, which changes the result "
            "by rounding only.",
            whole,
            plan.size,
            self.num_parts[key],
        )

    def _clip(self, parameters: Sequence[Parameter]) -> Tensor:
        """The norm of all gradients, which are scaled down where it is too large."""
        self.accelerator.unscale_gradients()  # its own clipping loads much that only sharded gradients need
        norm = self.shards.total_norm(parameters)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        return norm

    def _step_if(self, is_good: Tensor) -> None:
        """Let the optimizer step, or pass over the step as if it had not been.

        Fused optimizers of torch decide on the device; others have to be told by the host, which waits for it, as loss
        scaling does anyway.
        """
        scaler, bare = self.accelerator.scaler, bare_optimizer(self.optimizer)
        is_beside = all(parameter.device == is_good.device for parameter in self.parameters)
        if scaler is None and is_good.device.type == "cuda" and is_beside and skips_on_device(bare):
            bare.grad_scale, bare.found_inf = None, (~is_good).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            bare.found_inf = None  # type: ignore[attr-defined]
        elif bool(is_good):
            self.optimizer.step()
        elif scaler is not None:
            scaler.update()
