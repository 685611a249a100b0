"""How long a training lasts: a number of steps, and no longer than some minutes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

_WARMUP = 0.02
_SMOOTHING = 0.98


@dataclass
class Pace:
    """Steps of a training, with a bar.

    Attributes:
        name: Of the bar.
        num_steps: At most as many.
        seconds: No longer; the learning rate falls in time.
    """

    name: str
    num_steps: int
    seconds: float = math.inf
    _bar: tqdm = field(init=False, repr=False)
    _loss: float | None = field(default=None, init=False)

    def steps(self) -> Iterator[float]:
        """What part of the training is behind each step, from 0 to 1."""
        start = time.monotonic()
        with tqdm(total=self.num_steps, desc=self.name, mininterval=5) as self._bar:
            for step in range(self.num_steps):
                progress = max(step / self.num_steps, (time.monotonic() - start) / self.seconds)
                if progress >= 1:
                    return
                yield progress
                self._bar.update()

    def rate(self, highest: float, progress: float) -> float:
        """The learning rate: a short rise, then half a cosine down."""
        return highest * min(1, progress / _WARMUP + 0.01) * (1 + math.cos(math.pi * progress)) / 2

    def note(self, loss: Tensor) -> None:
        """Show the loss, smoothed."""
        value = float(loss.detach())
        self._loss = value if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * value
        self._bar.set_postfix(loss=f"{self._loss:.4f}", refresh=False)
