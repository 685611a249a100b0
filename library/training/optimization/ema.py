"""An exponential moving average (EMA) of the trained weights, kept beside them in float32.

The average only reads the weights, so a training with it is the same to the last bit as one without. With --ema_decay
a run saves the averaged weights as NAME-ema beside each NAME, the weights as trained; samples are drawn and the
validation loss is measured with the averaged ones.

Source: Polyak & Juditsky 1992, doi:10.1137/0330046. The warm-up, by which the first weights are soon forgotten, is that
of TensorFlow's tf.train.ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from library.errors import CheckpointError

_CHUNK = 2**26  # numbers that are moved at a time: the most that is held twice in float32
_UPDATES = "updates"


class Ema:
    """Average of a list of parameters.

    The n-th update moves it by 1 - min(decay, (1 + n) / (10 + n)) of the way to the weights. In host memory beside
    weights on a GPU it takes a step's weights only at the next call of any method: by then they have arrived, so that
    the device is not waited for.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, device: torch.device | None = None) -> None:
        """Begin with the weights as they are.

        Args:
            parameters: What trains, always in the same order.
            decay: 0 keeps no memory of earlier weights, 1 forgets them by the warm-up alone.
            device: Of the average; None for where each parameter is.

        Raises:
            ValueError: `decay` is not within 0 and 1.
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be between 0 and 1, got {decay}")
        self._parameters = list(parameters)
        self._decay = decay
        self._averages = [
            parameter.detach().to(device or parameter.device, torch.float32, copy=True)
            for parameter in self._parameters
        ]
        self._num_updates = 0
        self._is_applied = False
        is_far = any(
            parameter.is_cuda and average.device.type == "cpu"
            for parameter, average in zip(self._parameters, self._averages, strict=True)
        )
        self._arrivals = _Arrivals(self._parameters) if is_far else None

    def restart(self) -> None:
        """Begin anew with the weights as they are now, as where a state that has no average was put back."""
        self._settle()
        _fill(self._averages, self._parameters)
        self._num_updates = 0

    def update(self) -> None:
        """Move the average towards the weights; for after an optimizer step. The weights are only read."""
        assert not self._is_applied, "the parameters hold the average"
        if self._arrivals is None:
            self._move_towards(self._parameters)
            return
        self._settle()
        self._arrivals.send(self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside, in their own precision, and afterwards their own bits again.

        Nothing may train inside: the weights are put back as they were before. Meanwhile they are in host memory.
        """
        assert not self._is_applied, "the parameters hold the average already"
        self._settle()
        own = [parameter.detach().to("cpu", copy=True) for parameter in self._parameters]
        self._is_applied = True
        try:
            _fill(self._parameters, self._averages)
            yield
        finally:
            _fill(self._parameters, own)
            self._is_applied = False

    def state(self) -> dict[str, Tensor]:
        """Copies in host memory of all that it takes to go on."""
        self._settle()
        averages = {_name(index): average.to("cpu", copy=True) for index, average in enumerate(self._averages)}
        return {_UPDATES: torch.tensor(self._num_updates), **averages}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            CheckpointError: It is the average of other weights.
        """
        shapes = {_name(index): average.shape for index, average in enumerate(self._averages)}
        if {name: tensor.shape for name, tensor in state.items()} != {_UPDATES: torch.Size(), **shapes}:
            raise CheckpointError(
                "the averaged weights of the saved state have other shapes than the weights that train now. "
                "Continue with the options of that run, or leave out --ema_decay."
            )
        self._settle()
        _fill(self._averages, [state[name] for name in shapes])
        self._num_updates = int(state[_UPDATES])

    def _settle(self) -> None:
        """Take in weights that are on their way."""
        if self._arrivals is not None and self._arrivals.are_due:
            self._move_towards(self._arrivals.receive())

    @torch.no_grad()
    def _move_towards(self, values: Sequence[Tensor]) -> None:
        self._num_updates += 1
        share = 1 - min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        for part in _chunks(self._averages):
            averages = self._averages[part]
            ends = [
                value.detach().to(average.device, torch.float32)
                for value, average in zip(values[part], averages, strict=True)
            ]
            torch._foreach_lerp_(averages, ends, share)


class _Arrivals:
    """Copies of parameters of a GPU on their way to page-locked host memory."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._buffers = [
            torch.empty_like(parameter, device="cpu", pin_memory=parameter.is_cuda) for parameter in parameters
        ]
        self._events: list[torch.cuda.Event] = []
        self.are_due = False  # sent and not received

    def send(self, parameters: Sequence[Tensor]) -> None:
        """Queue the copies behind what the device has to do; what was sent before must be received."""
        _fill(self._buffers, parameters)
        devices = {parameter.device for parameter in parameters if parameter.is_cuda}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]
        self.are_due = True

    def receive(self) -> Sequence[Tensor]:
        """The copies; waits for them alone. They are overwritten by the next ones."""
        for event in self._events:
            event.synchronize()
        self.are_due = False
        return self._buffers


@torch.no_grad()
def _fill(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value into its target; equal formats keep their bits. Waits only where a target is pageable memory."""
    for target, value in zip(targets, values, strict=True):
        is_free = target.is_cuda or (value.is_cuda and target.is_pinned())
        target.copy_(value, non_blocking=is_free)


def _chunks(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Neighbours that have about _CHUNK numbers together, or one tensor that has more."""
    start, size = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and size + tensor.numel() > _CHUNK:
            yield slice(start, index)
            start, size = index, 0
        size += tensor.numel()
    if start < len(tensors):
        yield slice(start, len(tensors))


def _name(index: int) -> str:
    return f"average.{index}"
