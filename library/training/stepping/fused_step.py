"""One optimizer step inside the backward pass, for `--fused_backward_pass` and `--blockwise_fused_optimizers`.

The loss is known before the backward pass, so a step with a loss that is not finite is as if it had not been. A
gradient that is not finite is known only when others have acted already: then its own part alone is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch

from library.device import release_unused_memory
from library.errors import EnvironmentFault
from library.log import get_logger
from library.memory.fused_backward import BackwardParts
from library.memory_use import is_out_of_memory
from library.records import Batch
from library.training.optimization.lean_optimizer import bare_optimizer
from library.training.optimization.optimizer_modes import skips_on_device
from library.training.optimization.part_steps import PartSteps
from library.training.stepping.optimizer_step import OptimizerStep
from library.training.stepping.step_log import Sample

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

T = TypeVar("T")
logger = get_logger(__name__)

_ALMOST_ZERO = 1e-6  # as in torch's clipping of gradients


@dataclass
class FusedStep(OptimizerStep):
    """Makes steps, each of one batch and in one process.

    Attributes:
        parts: The parameters, dealt out: those of a part step together. `max_grad_norm` is that of a part.
    """

    parts: Sequence[Sequence[Parameter]] = field(kw_only=True)

    def __post_init__(self) -> None:
        assert self.accumulation == self.accelerator.num_processes == 1
        assert self.accelerator.scaler is None
        self._steps = PartSteps(self.optimizer, self.parts)
        self._listener = BackwardParts(self.parts, self._step_part)
        self._norms: list[Tensor] = []

    def __call__(
        self, batches: Sequence[Batch], *, is_stop_asked: bool, has_failed: bool
    ) -> tuple[list[Sample], Tensor]:
        """Make a step.

        Raises:
            EnvironmentFault: The batch does not fit into memory. Only if its forward pass did not fit, no weight has
                been changed.
        """
        (batch,) = batches
        assert not has_failed, "one process ends where it fails"
        own = self._within_memory(batch, lambda: self.batch_loss(batch.to(self.accelerator.device)))
        loss = own.losses.mean()
        norm = torch.full_like(loss.detach(), torch.nan)
        if bool(torch.isfinite(loss)):
            self._within_memory(batch, lambda: self._backward(loss))
            norm = torch.stack(self._norms).norm()
        self.rates = self.read_rates()
        self.schedule.step()
        items = zip(batch.plan.items, batch.sample_ids, own.timesteps.tolist(), strict=True)
        is_bad = ~torch.isfinite(norm)
        told = [torch.full_like(norm, float(value)) for value in (is_stop_asked, has_failed)]
        head = torch.stack([loss.detach().float(), norm, is_bad.float(), *told])
        losses = own.losses.detach().float()
        return [Sample(item.record, name, timestep) for item, name, timestep in items], torch.cat([head, losses])

    def _backward(self, loss: Tensor) -> None:
        self._norms = []
        with self._listener.listening():
            self.accelerator.backward(loss)
        self._steps.end()

    @torch.no_grad()
    def _step_part(self, number: int) -> None:
        """Clip the gradients of a part and let the optimizer step it, unless they are not finite."""
        gradients = [parameter.grad for parameter in self.parts[number] if parameter.grad is not None]
        norm = torch.stack([torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]).norm()
        self._norms.append(norm)
        if self.max_grad_norm > 0:
            scale = (self.max_grad_norm / (norm + _ALMOST_ZERO)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale)
        bare = bare_optimizer(self.optimizer)
        self.is_halfway = True
        if norm.device.type == "cuda" and skips_on_device(bare):
            bare.grad_scale, bare.found_inf = None, (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self._steps.step(number)
            bare.found_inf = None  # type: ignore[attr-defined]
        elif bool(torch.isfinite(norm)):
            self._steps.step(number)

    def _within_memory(self, batch: Batch, compute: Callable[[], T]) -> T:
        """What `compute` gives. A batch cannot be split here: its parts would have to be added up."""
        self._listener.num_done = 0
        try:
            return compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        release_unused_memory(self.accelerator.device)
        if self._listener.num_done:
            logger.error(
                "%d of %d parts of the weights have made the step that failed.",
                self._listener.num_done,
                len(self.parts),
            )
        raise EnvironmentFault(
            f"out of memory with {len(batch.sample_ids)} pictures at {batch.plan.size} ({message}), and a batch cannot "
            "be split where the optimizer steps inside the backward pass. Use --fit with the memory of the GPU, "
            "which chooses settings; or --gradient_checkpointing, --blocks_to_swap, a lower resolution or a smaller "
            "--train_batch_size."
        )
