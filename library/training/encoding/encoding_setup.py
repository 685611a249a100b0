"""What filling a cache needs to know of a run, and what all its processes do together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.data.cache import CacheEntry, TensorCache, stored_precision
from library.data.cache.npz import NpzLatents, NpzReader, NpzTexts, unusable
from library.data.cache.precompute import FillReport, fill_cache, own_batches
from library.data.cache.tensors import USUAL_ADVICE
from library.errors import DatasetError
from library.families.base import ModelFamily
from library.log import get_logger
from library.training.planning import DataPlan

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)


@dataclass(frozen=True)
class EncodingSetup:
    """What filling a cache needs to know of the run.

    Attributes:
        files: The family's files.
        dtype: Precision of the encoders.
        batch_size: Entries encoded at once.
        to_disk: Keep the entries in files.
        cache_dir: Where files lie instead of beside the images.
        advice: What the user can do where files cannot be written beside the images.
        skip_cache_check: Use cache files of sd-scripts, which do not say what they were made from.
        on_fault: Told the id and the error of every entry that cannot be made, and the others are; by default the
            first error ends the filling.
        on_report: Told what each filling came to.
    """

    family: ModelFamily
    files: Any
    plan: DataPlan
    accelerator: Accelerator
    dtype: torch.dtype
    batch_size: int
    to_disk: bool
    cache_dir: Path | None = None
    advice: str = USUAL_ADVICE
    skip_cache_check: bool = False
    on_fault: Callable[[str, DatasetError], None] | None = None
    on_report: Callable[[FillReport], None] | None = None

    @property
    def device(self) -> torch.device:
        """Where encoders run."""
        return self.accelerator.device

    @property
    def stored_dtype(self) -> torch.dtype:
        """Precision of what is kept."""
        return stored_precision(torch.empty(0, dtype=self.dtype)).dtype

    def cache_of(self, entries: Sequence[CacheEntry]) -> TensorCache:
        """A cache that says what this run can change where files cannot be written."""
        return TensorCache(entries, advice=self.advice if self.cache_dir is None else "Choose another --cache_dir")

    def missing(self, cache: TensorCache) -> dict[str, str]:
        """{id: reason} of the entries to make, alike on every process even while another run writes into the folder."""
        merged = dict(_gathered(cache.check().items(), self.accelerator))
        return {entry_id: merged[entry_id] for entry_id in cache.ids if entry_id in merged}

    def adopt(
        self,
        cache: TensorCache,
        missing: Mapping[str, str],
        found: Mapping[str, NpzLatents | NpzTexts],
        what: str,
    ) -> dict[str, str]:
        """What is still missing after archives of sd-scripts have been put in, if that is asked for."""
        if not found:
            return dict(missing)
        if not self.skip_cache_check:
            logger.info(
                "%s: %d .npz caches of sd-scripts lie beside the pictures. They do not say what they were made from, "
                "so new ones are made; --skip_cache_check uses them as they are.",
                what,
                len(found),
            )
            return dict(missing)
        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        share = {entry_id: found[entry_id] for entry_id in list(found)[rank::number]}
        faults = dict(_gathered(unusable(cache, share, is_shown=rank == 0).items(), self.accelerator))
        used = {entry_id: archive for entry_id, archive in found.items() if entry_id not in faults}
        cache.adopt(used)
        if used:
            logger.warning(
                "%s: %d .npz caches of sd-scripts are used as they are (--skip_cache_check). Whether they belong to "
                "these pictures, captions and encoders cannot be told from them.",
                what,
                len(used),
            )
        unused = {entry_id: f"its .npz cache cannot be used: {reason}" for entry_id, reason in faults.items()}
        return {entry_id: unused.get(entry_id, why) for entry_id, why in missing.items() if entry_id not in used}

    def npz_reader(self, encoders: Sequence[str] = ()) -> NpzReader:
        """Of the family, for archives of sd-scripts; of text states those of these encoders."""
        return self.family.npz_reader(self.files, self.stored_dtype, encoders)

    def own_batches(self, cache: TensorCache, batches: Sequence[Sequence[str]]) -> list[list[str]]:
        """What of these batches `fill` lets this process encode, in this order."""
        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        return own_batches(cache, batches, rank=rank, num_processes=number)[0]

    def fill(
        self,
        cache: TensorCache,
        missing: Mapping[str, str],
        batches: Sequence[Sequence[str]],
        load: Any,
        encode: Any,
        what: str,
        num_encoders: int = 1,
    ) -> None:
        """Share the batches of the missing entries {id: reason} among the processes."""
        self.accelerator.wait_for_everyone()
        report = fill_cache(
            cache,
            batches,
            load,
            encode,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            what=what,
            reasons=missing,
            num_encoders=num_encoders,
            on_fault=self.on_fault,
        )
        if self.on_report is not None:
            self.on_report(report)
        self.accelerator.wait_for_everyone()


def _gathered(pairs: Iterable[tuple[str, str]], accelerator: Accelerator) -> list[tuple[str, str]]:
    """What all processes have found, on each of them."""
    from accelerate.utils import gather_object

    return list(gather_object(list(pairs))) if accelerator.num_processes > 1 else list(pairs)
