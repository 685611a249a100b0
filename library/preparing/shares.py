"""The work of a tool shared among the processes that it was launched with. No model is split; each has its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

WAITING_DAYS = 7


@dataclass(frozen=True)
class Shares:
    """Which of how many processes this one is.

    Attributes:
        rank: Counted from 0.
        count: All of them.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_launch(cls) -> Shares:
        """As the launcher's environment says."""
        count = int(os.environ.get("WORLD_SIZE", "1") or 1)
        return cls(int(os.environ.get("RANK", "0") or 0), count)

    @property
    def is_first(self) -> bool:
        """Whether this process tells what all have done."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[Item]:
        """The items that this process works on: every one is some process's, and none is two's."""
        return list(items[self.rank :: self.count])

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process, in the order of ranks. All have to call it."""
        if self.count == 1:
            return [value]
        from datetime import timedelta

        import torch.distributed
        from accelerate import PartialState

        # Joins the processes, if nothing has yet. The first to be done waits for the last, however long that takes.
        PartialState(timeout=timedelta(days=WAITING_DAYS))
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values
