"""Random numbers that some optimizers draw in their steps, keyed by seed and step like all others.

A run that was resumed then draws what an unbroken one draws, all processes draw the same, and nothing else that draws
from torch's global generators is moved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.optim import Optimizer

from library.rng import stream_seed


@contextmanager
def own_draws(optimizer: Optimizer) -> Iterator[None]:
    """A context for one step. The optimizer's attribute `draws`, (seed, steps), counts them and is in its state."""
    seed, step = optimizer.draws  # type: ignore[attr-defined]
    key = stream_seed(seed, "optimizer", step)
    devices = {p.device for group in optimizer.param_groups for p in group["params"] if p.device.type == "cuda"}
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
        torch.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
    optimizer.draws = (seed, step + 1)  # type: ignore[attr-defined]
