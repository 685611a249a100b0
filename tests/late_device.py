"""A device for tests of block swap, on the CPU: copies come as late as they may, and every use of a buffer is watched.

What a copy will bring is poison until computing has waited for it, or until a later copy in the same lane needs the
place. Using a buffer whose copy was not waited for, and copying into one that computing was not seen to be done with,
are errors.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

POISON = 0xFF  # as bytes of floating numbers: not a number


class LateDevice(TorchDispatchMode):
    """A lane (library/memory/copy_lane.py), and a context that sees all computing.

    Attributes:
        num_copies: Copies that were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_copies = 0
        self._num_done = self._num_operations = 0
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._last_use: dict[int, int] = {}
        self._targets: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._num_operations += 1
        if any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns):
            return func(*args, **(kwargs or {}))  # a view, which reads nothing
        coming = {_place(target) for target, _ in self._pending}
        leaving = {_place(source) for _, source in self._pending}
        writes = any(argument.alias_info is not None for argument in func._schema.arguments)
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and (place := _place(tensor)) in self._targets:
                assert place not in coming, f"{func} uses a buffer before its copy was waited for"
                assert not (writes and place in leaving), f"{func} changes what is on its way back"
                self._last_use[place] = self._num_operations
        return func(*args, **(kwargs or {}))

    def computed(self) -> int:
        return self._num_operations

    def copy(self, target, source, *, after=None) -> int:
        for tensor in (target, source):
            last = self._last_use.get(_place(tensor), 0)
            assert last <= (after or 0), "a copy does not wait for computing with its buffer"
        if any(_place(target) in (_place(old), _place(new)) for old, new in self._pending):
            self.finish()
        self._targets.add(_place(target))
        with _disable_current_modes():
            target.fill_(POISON)
        self._pending.append((target, source))
        self.num_copies += 1
        return self.num_copies

    def hold(self, mark) -> None:
        while self._num_done < (mark or 0):
            self._make_next()

    def finish(self) -> None:
        while self._pending:
            self._make_next()

    def _make_next(self) -> None:
        target, source = self._pending.pop(0)
        with _disable_current_modes():
            target.copy_(source)
        self._num_done += 1


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
