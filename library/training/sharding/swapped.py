"""How the model lies in the processes where blocks of it wait on the host: whole in every process, in two places.

What reads or changes weights as a whole finds them at home: all that trained has come back from the device by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from library.training.sharding.unsharded import Unsharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from library.memory.block_swap import BlockSwapper

T = TypeVar("T")


class Swapped(Unsharded):
    """Every process has the whole model, and swaps blocks of its denoiser."""

    def __init__(self, swapper: BlockSwapper) -> None:
        self._swapper = swapper
        self._trains = bool(swapper.trained)

    def settle(self) -> None:
        """Bring weights that train home; the others are there."""
        if self._trains:
            self._swapper.settle()

    def lead(self, accelerator: Accelerator, act: Callable[[], T]) -> T | None:
        """As ever, on weights that may be read."""
        self.settle()
        return super().lead(accelerator, act)

    @contextmanager
    def everywhere(self, name: str) -> Iterator[None]:
        """As ever; what changes weights on the way in and out finds them at home."""
        self.settle()
        with super().everywhere(name):
            try:
                yield
            finally:
                self.settle()

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Change it at home."""
        self.settle()
        super().put(parameter, value)

    def all_finite(self) -> bool:
        """As ever."""
        self.settle()
        return super().all_finite()

    def optimizer_state(self) -> dict[str, Any]:
        """As ever: what lies beside a weight lies on the device."""
        with self._swapper.as_on_device():
            return super().optimizer_state()

    def receiving_state(self) -> AbstractContextManager[None]:
        """What is put beside a weight goes to the device."""
        return self._swapper.as_on_device()

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors, of weights that are at home."""
        self.settle()
        return tensors
