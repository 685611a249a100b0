"""The losses of a run, read from the device one step late, so that a step never waits for its own end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class LossLog:
    """Mean loss of every optimizer step.

    Attributes:
        values: Of all steps but the last one pushed; `flush` adds that.
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self._pending: tuple[Tensor, Any] | None = None  # number on the host, and the event after its copy

    def push(self, loss: Tensor) -> None:
        """Take the loss of a step that may still be computed. A scalar."""
        self.flush()
        if loss.device.type != "cuda":
            self._pending = loss, None
            return
        import torch

        host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        host.copy_(loss, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = host, copied

    def flush(self) -> None:
        """Wait for the loss that was pushed last."""
        if self._pending is None:
            return
        loss, copied = self._pending
        if copied is not None:
            copied.synchronize()
        self.values.append(float(loss))
        self._pending = None

    def mean_of_last(self, num_steps: int) -> float | None:
        """Mean over the last steps that are known; None before the first."""
        recent = self.values[-num_steps:]
        return sum(recent) / len(recent) if recent else None
