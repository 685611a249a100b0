"""What every script that works with data does first: options, plan of the data, headers of the model files, processes.

`Trainer` and the caching tools are runs. This file imports nothing heavy at its top, so that wrong options and wrong
data are reported before torch is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from library.data.config.sources import DataPlaces, specs_from_options
from library.data.problems import first_names
from library.errors import UnreadableError
from library.log import get_logger
from library.training.planning import DataPlan, PlanSettings, plan_data
from library.training.processes import check_launch, check_started, num_processes
from library.training.sharding.launch import plain_processes

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from library.families.base import ModelFamily
    from library.records import ImageRecord

logger = get_logger(__name__)

MAX_DECODED_TO_TELL = 1000  # pictures; decoding more takes longer than one wants to wait for a list of faults


class Run:
    """Options, and step by step what they come to.

    Attributes:
        family: The model family, told the sizes of the data after `plan_run`.
        plan: After `plan_run`.
        files: The family's files, after `inspect_files`.
        accelerator: After `start`, like `seed` and `weight_dtype`.
        can_shard: Several processes can share the weights that train.
        other_models: See `ModelFamily.refuse_other_models`.
    """

    can_shard = False
    other_models: ClassVar[Mapping[str, str]] = {}

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

    @property
    def is_conditioned(self) -> bool:
        """Whether every picture has a conditioning picture, which the network is told."""
        return bool(self.options.data.takes_conditioning)

    def check_options(self) -> None:
        """Everything that can be told from the options alone."""
        check_launch(can_shard=self.can_shard)
        self.family = self.make_family()

    def plan_run(self) -> None:
        """Data and steps, from headers only. Settings of the data depend on the family, so a model of another one is
        told before.

        Raises:
            CheckpointError: The model is of another family.
            DatasetError: Something is wrong with the dataset file, a folder, a picture or a caption; all is listed.
            OptionError: Caches would silence something that changes from epoch to epoch.
        """
        self.family.refuse_other_models(self.other_models)
        self.set_plan(self.make_plan())
        self.plan.tell()
        if self.plan.has_fatal_faults and len(self.plan.records) <= MAX_DECODED_TO_TELL:
            self.set_plan(self.plan.without(self._broken_here()))
        self.plan.refuse_faults()
        if self.options.cache.caches_text:
            self.plan.refuse_caption_conflicts()
        if self.options.cache.caches_latents:
            self.plan.refuse_pixel_conflicts()

    def make_plan(self) -> DataPlan:
        """The plan with all its faults."""
        options = self.options
        source, specs = specs_from_options(
            DataPlaces(**options.data.places),
            options.dataset_defaults(),
            bucket_multiple=self.family.bucket_multiple,
            masked_loss=options.loss.masked_loss,
            is_conditioned=self.is_conditioned,
            given=options.given_defaults(),
        )
        return plan_data(source, specs, self.plan_settings(), index_dir=options.cache.index_dir)

    def plan_settings(self) -> PlanSettings:
        """What the plan depends on beside the data."""
        options = self.options
        return PlanSettings(
            num_processes=num_processes(),
            accumulation=options.training.gradient_accumulation_steps,
            max_steps=options.training.max_train_steps,
            max_epochs=options.training.max_train_epochs,
            prior_loss_weight=options.loss.prior_loss_weight,
            on_bad_file=options.data.on_bad_file,
            num_variants=options.cache.text_encoder_cache_variants,
        )

    def caption_replacements(self) -> Mapping[str, Sequence[str]]:
        """Texts that are put in for others in captions, of which one is drawn; for "" as a key the whole caption."""
        return {}

    def set_plan(self, plan: DataPlan) -> None:
        """Take a plan, and tell the family which sizes it has."""
        self.plan = plan
        self.family = self.family.for_buckets(
            [spec.resolution for spec in plan.specs], sorted({crop.bucket for crop in plan.crops})
        )

    def _broken_here(self) -> Mapping[Path, str]:
        """What is damaged behind its header, where the data is refused anyway: it shall be told together."""
        from library.data.files.soundness import broken_pictures

        try:
            return broken_pictures(self.plan.records, self.plan.index, is_shown=num_processes() == 1)
        except UnreadableError:
            return {}  # what is known already is told; the drive will tell of itself at the next start

    def leave_out(self, broken: Mapping[Path, str]) -> None:
        """Plan again without pictures that turned out to be damaged.

        Raises:
            DatasetError: `--on_bad_file` is "error", or nothing is left; all are listed.
        """
        self.set_plan(self.plan.without(broken))
        self.plan.refuse_faults()

    def set_aside(self) -> None:
        """Tell which pictures cannot be used, and with `--on_bad_file quarantine` move them out of the way."""
        self.plan.tell_unusable()
        self.quarantine()

    def quarantine(self) -> None:
        """With `--on_bad_file quarantine`, move the pictures that cannot be used out of the way."""
        from library.data.files.quarantine import quarantine

        if self.options.data.on_bad_file == "quarantine" and self.accelerator.is_main_process:
            moved = quarantine(
                self.plan.findings.faults,
                used=[path for record in self.plan.records for path in record.files],
                caption_extensions={subset.caption_extension for spec in self.plan.specs for subset in spec.subsets},
            )
            if moved:
                folders = sorted({str(place.parent) for _, place in moved})
                logger.warning("moved %d files to %s", len(moved), ", ".join(folders))
        self.accelerator.wait_for_everyone()

    def inspect_files(self) -> None:
        """Headers of the model files."""
        self.files = self.family.inspect()

    def start(self) -> None:
        """Processes, device, precision and seed."""
        from accelerate import Accelerator
        from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs, broadcast_object_list

        from library.device import has_accelerator, precision_dtype, precision_note

        precision = self.options.precision.mixed_precision
        with plain_processes():
            self.accelerator = Accelerator(
                mixed_precision=precision,
                cpu=not has_accelerator(),
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=self.options.distributed.timeout),
                    # no weight is used twice in a pass: a cache would keep a copy of all
                    AutocastKwargs(cache_enabled=False),
                ],
            )
        check_started(self.accelerator)
        if note := precision_note(precision, self.accelerator.device):
            logger.warning("%s", note)
        seed = self.options.training.seed
        drawn = [random.SystemRandom().randrange(1 << 31) if seed is None else seed]
        broadcast_object_list(drawn)
        self.set_seed(drawn[0])
        self.weight_dtype = precision_dtype(precision)

    def set_seed(self, seed: int) -> None:
        """The seed of the run, and of whatever draws without a stream of its own."""
        from accelerate.utils import set_seed

        self.seed = seed
        set_seed(seed)

    def broken_pictures(self, records: Iterable[ImageRecord]) -> Mapping[Path, str]:
        """Decode pictures, shared among the processes; why those that are damaged cannot be used, on every process.

        Raises:
            UnreadableError: On every process, where one cannot read files.
        """
        from accelerate.utils import gather_object

        from library.data.files.soundness import check_pixels

        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        distinct = list({record.files: record for record in records}.values())
        try:
            found = check_pixels(distinct[rank::number], self.plan.index, is_shown=rank == 0)
            told = (list(found.broken.items()), list(found.black_masks), "")
        except UnreadableError as error:
            told = ([], [], str(error))  # raised below, by every process
        everyone: list[tuple[list[tuple[Path, str]], list[Path], str]] = gather_object([told])
        if failures := [failure for _, _, failure in everyone if failure]:
            raise UnreadableError("\n".join(failures))
        black = [path.name for path in sorted({path for _, paths, _ in everyone for path in paths})]
        if black:
            logger.warning(
                "masks that are black all over, so that nothing is learned: %d (%s)", len(black), first_names(black)
            )
        return {path: problem for broken, _, _ in everyone for path, problem in broken}

    @property
    def device(self) -> torch.device:
        """Where models run."""
        return self.accelerator.device
