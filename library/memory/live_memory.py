"""How much memory tensors take while something runs, and at most.

It looks at every operation, so it also works with tensors that have sizes and no numbers (torch's fake tensors): models
of any size are counted on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """A context that counts the bytes of tensors which operations in it make, until they are freed.

    What a kernel takes for itself and gives back before it ends is not seen.

    Attributes:
        now: Bytes that are taken.
        peak: The most that was.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Begin with nothing.

        Args:
            known: Tensors that were there before and are not counted.
        """
        super().__init__()
        self.now = self.peak = 0
        self._seen = {_storage_id(tensor) for tensor in known}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it has made."""
        made = func(*args, **(kwargs or {}))
        self._look_at(made)
        return made

    def _look_at(self, made: Any) -> None:
        """At a tensor, at several or at none: most calls only ask a fake tensor where it is."""
        if isinstance(made, Tensor):
            self._count(made)
        elif isinstance(made, (tuple, list)):
            for each in made:
                self._look_at(each)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


def _storage_id(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def num_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors among these values."""
    return sum(each.numel() * each.element_size() for each in tensors if isinstance(each, torch.Tensor))
