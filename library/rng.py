"""Random numbers from named streams.

A draw is keyed by (seed, stream, keys...), for instance (seed, "noise", epoch, sample id), and never
by how many numbers were drawn before. Resuming, the number of workers, of processes and the batch
size can therefore not change what is drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def stream_seed(seed: int, stream: str, *keys: int | str) -> int:
    """Derive a seed below 2**63 from the run's seed, a stream name and any number of keys.

    Keys may be names of files that are no UTF-8, as Python reads them.
    """
    text = "\x1f".join([str(seed), stream, *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def python_stream(seed: int, stream: str, *keys: int | str) -> random.Random:
    """A Python generator for captions, crops and orders."""
    return random.Random(stream_seed(seed, stream, *keys))


def torch_stream(seed: int, stream: str, *keys: int | str) -> Generator:
    """A torch generator on the CPU, so that every device sees the same numbers."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, stream, *keys))


def normal_per_sample(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, each sample from its own seed. Shape [len(seeds), *shape], float32, CPU."""
    import torch

    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def uniform_per_sample(seeds: Sequence[int], shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in [0, 1), each sample from its own seed. Shape [len(seeds), *shape], float32, CPU."""
    import torch

    draws = [torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)
