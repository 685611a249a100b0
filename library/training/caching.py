"""Filling the caches of a run: latents, text states, and the text states of sample prompts.

Caches are checked before any weights are read; an encoder is loaded only if something is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.data.cache import TensorCache, latent_entries, prompt_entries, text_entries
from library.data.images import load_image, prepare_image
from library.data.loader import posterior_seed
from library.data.precompute import fill_cache
from library.families.base import ModelFamily
from library.log import get_logger
from library.rng import normal_per_sample
from library.training.planning import DataPlan

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = get_logger(__name__)


def stored_precision(tensor: Tensor) -> Tensor:
    """What goes into a cache: bfloat16 where the encoder ran in half precision, else as it is."""
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float16 else tensor


class LatentFiller:
    """Fills the latent cache of a data plan."""

    def __init__(self, plan: DataPlan, family: ModelFamily, identity: str, to_disk: bool) -> None:
        self.plan = plan
        self.family = family
        entries = latent_entries(
            plan.records, plan.crops, plan.specs, family=family.name, identity=identity, to_disk=to_disk
        )
        self.cache = TensorCache(entries)
        self.ids = [entry.id for entry in entries]

    def fill(self, load_vae: Callable[[], nn.Module], *, batch_size: int, rank: int, num_processes: int) -> None:
        """Encode what is missing or stale."""
        missing = self.cache.check()
        if not missing:
            logger.info("latents: all %d are cached", len(set(self.ids)))
            return
        vae = load_vae()
        first_record = {entry_id: index for index, entry_id in reversed(list(enumerate(self.ids)))}
        by_size = defaultdict(list)
        for entry_id in missing:
            by_size[self.plan.crops[first_record[entry_id]].bucket].append(entry_id)
        batches = [ids[i : i + batch_size] for ids in by_size.values() for i in range(0, len(ids), batch_size)]
        fill_cache(
            self.cache,
            batches,
            lambda ids: [self._pixels(first_record[entry_id]) for entry_id in ids],
            lambda ids, pixels: self._encode(vae, [first_record[entry_id] for entry_id in ids], pixels),
            rank=rank,
            num_processes=num_processes,
            what="latents",
        )
