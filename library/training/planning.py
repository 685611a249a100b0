"""Everything about a run's data that needs no pixels and no torch: records, crops, captions, step counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.batches import StepCount, count_steps, epoch_plan, for_process
from library.data.buckets import plan_crops
from library.data.captions import CaptionRules, cache_conflicts, fixed_caption
from library.data.scan import scan_datasets
from library.data.schema import load_dataset_config
from library.errors import OptionError
from library.log import get_logger
from library.records import BatchPlan, CropPlan, ImageRecord

if TYPE_CHECKING:
    from library.data.specs import DatasetSpec

logger = get_logger(__name__)


@dataclass(frozen=True)
class DataPlan:
    """What will be trained on.

    Attributes:
        source: The dataset configuration file, for messages.
        specs: The datasets as configured.
        records: Every picture, in a stable order.
        crops: One per record.
        steps: The step arithmetic.
    """

    source: str
    specs: tuple[DatasetSpec, ...]
    records: tuple[ImageRecord, ...]
    crops: tuple[CropPlan, ...]
    steps: StepCount
    num_processes: int
    accumulation: int

    def fixed_captions(self) -> tuple[str, ...]:
        """The caption of each record after the rules that are not random; what a text cache holds."""
        return tuple(fixed_caption(record.caption, self._rules(record)) for record in self.records)

    def refuse_caption_conflicts(self) -> None:
        """Raise OptionError where cached encoder outputs would silence a random caption rule."""
        names = sorted({name for record in self.records for name in cache_conflicts(self._rules(record))})
        if names:
            raise OptionError(
                f"--cache_text_encoder_outputs cannot be used with {', '.join(names)} in {self.source}: "
                "a cached caption cannot change. Remove one of them."
            )

    def refuse_crop_conflicts(self) -> None:
        """Raise OptionError where cached latents would silence random crops."""
        if any(subset.random_crop for spec in self.specs for subset in spec.subsets):
            raise OptionError(
                f"--cache_latents cannot be used with random_crop in {self.source}: "
                "a cached picture is always cut at the same place. Remove one of them."
            )

    def epoch(self, epoch: int, *, seed: int, rank: int) -> tuple[BatchPlan, ...]:
        """The batches of one process in an epoch (counted from 1)."""
        plans = epoch_plan(
            self.records,
            self.crops,
            [spec.batch_size for spec in self.specs],
            seed,
            epoch,
            num_processes=self.num_processes,
            accumulation=self.accumulation,
        )
        return for_process(plans, rank, self.num_processes)

    def _rules(self, record: ImageRecord) -> CaptionRules:
        return self.specs[record.dataset].subsets[record.subset].captions


def plan_data(
    config: Path,
    defaults: Mapping[str, object],
    *,
    bucket_multiple: int,
    num_processes: int,
    accumulation: int,
    max_steps: int,
    max_epochs: int | None,
) -> DataPlan:
    """Read the dataset configuration, scan the folders and count the steps.

    Raises:
        DatasetError: With every problem of the configuration or of the pictures.
    """
    specs = load_dataset_config(config, defaults, bucket_multiple=bucket_multiple)
    records = scan_datasets(specs, str(config))
    crops = plan_crops(records, specs, str(config))
    steps = count_steps(
        records,
        crops,
        [spec.batch_size for spec in specs],
        num_processes=num_processes,
        accumulation=accumulation,
        max_steps=max_steps,
        max_epochs=max_epochs,
    )
    return DataPlan(str(config), specs, records, crops, steps, num_processes, accumulation)
