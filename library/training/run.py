"""What every script that works with data does first: options, plan of the data, headers of the model files, processes.

`Trainer` and the caching tools are runs. This file imports nothing heavy at its top, so that wrong options and wrong
data are reported before torch is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.log import get_logger
from library.training.planning import DataPlan, plan_data
from library.training.processes import check_launch, check_started, num_processes

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from library.families.base import ModelFamily
    from library.records import ImageRecord

logger = get_logger(__name__)


class Run:
    """Options, and step by step what they come to.

    Attributes:
        family: The model family, told the sizes of the data after `plan_run`.
        plan: After `plan_run`.
        files: The family's files, after `inspect_files`.
        accelerator: After `start`, like `seed` and `weight_dtype`.
    """

    family: ModelFamily
    plan: DataPlan
    files: Any
    accelerator: Accelerator
    seed: int
    weight_dtype: torch.dtype

    def __init__(self, options: Any) -> None:
        self.options = options

    def make_family(self) -> ModelFamily:
        """The model family, made from the options."""
        raise NotImplementedError

    def check_options(self) -> None:
        """Everything that can be told from the options alone."""
        check_launch()
        self.family = self.make_family()

    def plan_run(self) -> None:
        """Data and steps, from headers only."""
        training = self.options.training
        self.plan = plan_data(
            Path(self.options.data.dataset_config),
            self.options.dataset_defaults(),
            bucket_multiple=self.family.bucket_multiple,
            num_processes=num_processes(),
            accumulation=training.gradient_accumulation_steps,
            max_steps=training.max_train_steps,
            max_epochs=training.max_train_epochs,
        )
        self.family = self.family.for_buckets(
            [spec.resolution for spec in self.plan.specs], sorted({crop.bucket for crop in self.plan.crops})
        )
        if self.options.cache.caches_text:
            self.plan.refuse_caption_conflicts()
        if self.options.cache.caches_latents:
            self.plan.refuse_crop_conflicts()

    def inspect_files(self) -> None:
        """Headers of the model files."""
        self.files = self.family.inspect()

    def start(self) -> None:
        """Processes, device, precision and seed."""
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, set_seed

        from library.device import has_accelerator, precision_dtype

        precision = self.options.precision.mixed_precision
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=not has_accelerator(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=self.options.distributed.timeout)],
        )
        check_started(self.accelerator)
        seed = self.options.training.seed
        drawn = [random.SystemRandom().randrange(1 << 31) if seed is None else seed]
        broadcast_object_list(drawn)
        self.seed = drawn[0]
        set_seed(self.seed)
        self.weight_dtype = precision_dtype(precision)

    def broken_pictures(self, records: Iterable[ImageRecord]) -> Mapping[Path, str]:
        """Decode pictures, shared among the processes; why those that are damaged cannot be used, on every process."""
        from accelerate.utils import gather_object

        from library.data.soundness import broken_pictures

        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        distinct = list({record.path: record for record in records}.values())
        found = broken_pictures(distinct[rank::number], is_shown=rank == 0)
        return dict(gather_object(list(found.items())))  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """Where models run."""
        return self.accelerator.device
