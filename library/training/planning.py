"""Everything about a run's data that needs no pixels and no torch: records, crops, captions, step counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.files.index import PictureIndex
from library.data.files.scan import Scan, scan_datasets
from library.data.findings import Fault, Findings
from library.data.plan.batches import StepCount, count_steps, epoch_plan, for_process
from library.data.plan.buckets import Fit, fit_buckets
from library.data.plan.captions import cache_conflicts
from library.data.plan.regularisation import balance_regularisation
from library.data.plan.validation import split_validation
from library.data.plan.variants import caption_variants, variant_findings
from library.data.problems import NUM_LISTED, counted, dataset_error, first_names
from library.errors import OptionError
from library.log import get_logger
from library.records import BatchPlan, CropPlan, ImageRecord, Size

if TYPE_CHECKING:
    from library.data.config.specs import DatasetSpec, SubsetSpec

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a plan depends on beside the data.

    Attributes:
        num_processes: Processes that share an epoch.
        accumulation: Batches of one process per optimizer step.
        max_steps: Optimizer steps, unless `max_epochs` is given.
        max_epochs: Length of the run in epochs.
        prior_loss_weight: Factor on the loss of regularisation pictures.
        on_bad_file: "error", "skip" or "quarantine".
        num_variants: Caption variants kept in a text cache; None for the one fixed caption.
    """

    num_processes: int = 1
    accumulation: int = 1
    max_steps: int = 1
    max_epochs: int | None = None
    prior_loss_weight: float = 1.0
    on_bad_file: str = "error"
    num_variants: int | None = None


@dataclass(frozen=True)
class DataPlan:
    """What will be trained on.

    Attributes:
        source: The dataset configuration file or the folder given instead, for messages.
        specs: The datasets as configured.
        records: Every picture: first those that are trained, then those kept for validation.
        crops: One per record.
        num_training: How many records are trained.
        findings: All that was noticed.
        steps: The step arithmetic.
        settings: What the plan was made with.
        scan: What it was made from.
        index: What is remembered of the files.
    """

    source: str
    specs: tuple[DatasetSpec, ...]
    records: tuple[ImageRecord, ...]
    crops: tuple[CropPlan, ...]
    num_training: int
    findings: Findings
    steps: StepCount
    settings: PlanSettings
    scan: Scan
    index: PictureIndex

    @property
    def training_records(self) -> tuple[ImageRecord, ...]:
        """Pictures that are trained on, regularisation included."""
        return self.records[: self.num_training]

    @property
    def validation_records(self) -> tuple[ImageRecord, ...]:
        """Pictures that are kept for validation."""
        return self.records[self.num_training :]

    def caption_variants(self) -> tuple[tuple[str, ...], ...]:
        """The captions of each record that a text cache holds, beside the empty one."""
        return self._variants

    @cached_property
    def _variants(self) -> tuple[tuple[str, ...], ...]:
        number = self.settings.num_variants
        return tuple(
            caption_variants(record, self.subset(record), number if index < self.num_training else None)
            for index, record in enumerate(self.records)
        )

    def possible_captions(self) -> tuple[tuple[str, ...], ...]:
        """For each record all that its cached caption may be: its variants, and "" where captions are dropped."""

        def is_dropped(record: ImageRecord) -> bool:
            rules = self.subset(record).captions
            return rules.caption_dropout_rate > 0 or rules.caption_dropout_every_n_epochs > 0

        variants = zip(self.records, self.caption_variants(), strict=True)
        return tuple((*texts, "") if is_dropped(record) and "" not in texts else texts for record, texts in variants)

    def refuse_caption_conflicts(self) -> None:
        """Raise OptionError where cached encoder outputs would silence a random caption rule."""
        has_variants = self.settings.num_variants is not None
        rules = {id(self.subset(record).captions): self.subset(record).captions for record in self.training_records}
        names = sorted({name for own in rules.values() for name in cache_conflicts(own, has_variants)})
        if not names:
            return
        advice = "Remove one of them"
        if not has_variants and set(names) - {"token_warmup_step"}:
            advice += ", or give --text_encoder_cache_variants 10 to cache ten versions of each caption"
        raise OptionError(
            f"--cache_text_encoder_outputs cannot be used with {', '.join(names)} in {self.source}: "
            f"a cached caption cannot change. {advice}."
        )

    def refuse_pixel_conflicts(self) -> None:
        """Raise OptionError where cached latents would silence a random change of the picture."""
        names = sorted({name for spec in self.specs for subset in spec.subsets for name in subset.changes_pixels})
        if names:
            raise OptionError(
                f"--cache_latents cannot be used with {', '.join(names)} in {self.source}: "
                "a cached picture is always the same. Remove one of them."
            )

    @property
    def has_fatal_faults(self) -> bool:
        """Whether pictures that cannot be used refuse the data, and there are some."""
        return self.settings.on_bad_file == "error" and bool(self.findings.faults)

    def refuse_faults(self) -> None:
        """Raise DatasetError where the data cannot be trained on as it is, with everything that is wrong.

        With `on_bad_file` other than "error" pictures that cannot be used are no reason, unless none is left.
        """
        findings, is_strict = self.findings, self.settings.on_bad_file == "error"
        problems = [*findings.problems, *(str(fault) for fault in findings.faults if is_strict)]
        if not problems and not self.num_training:
            problems = [*map(str, (*findings.faults, *findings.left_out)), "nothing is left to train on; add pictures"]
        if problems:
            raise dataset_error(self.source, problems)

    def tell_unusable(self) -> None:
        """Log the pictures that cannot be used, where `on_bad_file` lets the others be trained."""
        faults = self.findings.faults
        if not faults:
            return
        unusable, used = ({fault.picture for fault in faults}, {record.path for record in self.training_records})
        logger.warning(
            "%s: %s left out, as --on_bad_file says; %d %s used:%s",
            self.source,
            "1 picture cannot be used and is"
            if len(unusable) == 1
            else f"{len(unusable)} pictures cannot be used and are",
            len(used),
            "is" if len(used) == 1 else "are",
            "".join(f"\n  {fault}" for fault in faults),
        )

    def tell(self) -> None:
        """Log what was noticed about the data."""
        for line in self.findings.remarks:
            logger.info("%s", line)
        for line in self.findings.notes:
            logger.warning("%s", line)
        if self.findings.left_out:
            reasons: dict[str, list[str]] = {}
            for fault in self.findings.left_out:
                reasons.setdefault(fault.problem, []).append(fault.path.name)
            for problem, names in reasons.items():
                logger.warning("left out: %d (%s): %s", len(names), first_names(names, NUM_LISTED), problem)
        if self.validation_records:
            logger.info("kept for validation: %s", counted(len(self.validation_records), "picture"))

    def without(self, broken: Mapping[Path, str], bad_masks: Collection[Path] = ()) -> DataPlan:
        """The same plan without pictures that turned out to be damaged; their reasons join the faults.

        Args:
            broken: {picture: what is wrong}.
            bad_masks: Those of them whose mask is what is wrong.
        """
        faults = tuple(
            Fault(path, problem, kind="mask" if path in bad_masks else "broken") for path, problem in broken.items()
        )
        scan = replace(
            self.scan,
            records=tuple(record for record in self.scan.records if record.path not in broken),
            findings=self.scan.findings + Findings(faults=faults),
        )
        return make_plan(self.source, self.specs, scan, self.index, self.settings)

    def epoch(self, epoch: int, *, seed: int, rank: int) -> tuple[BatchPlan, ...]:
        """The batches of one process in an epoch (counted from 1)."""
        plans = epoch_plan(
            self.training_records,
            self.crops[: self.num_training],
            [spec.batch_size for spec in self.specs],
            seed,
            epoch,
            num_processes=self.settings.num_processes,
            accumulation=self.settings.accumulation,
        )
        return for_process(plans, rank, self.settings.num_processes)

    def subset(self, record: ImageRecord) -> SubsetSpec:
        """The subset that a record belongs to."""
        return self.specs[record.dataset].subsets[record.subset]


def plan_data(
    source: str, specs: Sequence[DatasetSpec], settings: PlanSettings, *, index_dir: Path | None = None
) -> DataPlan:
    """Scan the folders, choose buckets, split off validation and count the steps. Faults are found, not raised.

    Args:
        source: The dataset file, for messages.
        specs: The datasets.
        settings: What else the plan depends on.
        index_dir: Where the index of pictures lies; None for the user's cache folder.
    """
    index = PictureIndex.open(index_dir)
    scan = scan_datasets(specs, source, index=index)
    return make_plan(source, specs, scan, index, settings)


def make_plan(
    source: str, specs: Sequence[DatasetSpec], scan: Scan, index: PictureIndex, settings: PlanSettings
) -> DataPlan:
    """`plan_data` from what a scan found. A pure function."""
    fit = fit_buckets(scan.records, specs)
    split = split_validation(fit.records, specs)
    balanced = balance_regularisation(split.training, weight=settings.prior_loss_weight)
    balance = replace(balanced.findings, problems=()) if split.findings.problems else balanced.findings  # they follow
    crops = dict(zip((r.key for r in fit.records), fit.crops, strict=True))
    preserved = _preservation(balanced.records, specs)
    alike = variant_findings((subset.captions for spec in specs for subset in spec.subsets), settings.num_variants)
    records = (*balanced.records, *split.validation)
    steps = count_steps(
        balanced.records,
        [crops[record.key] for record in balanced.records],
        [spec.batch_size for spec in specs],
        num_processes=settings.num_processes,
        accumulation=settings.accumulation,
        max_steps=settings.max_steps,
        max_epochs=settings.max_epochs,
    )
    return DataPlan(
        source=source,
        specs=tuple(specs),
        records=records,
        crops=tuple(crops[record.key] for record in records),
        num_training=len(balanced.records),
        findings=scan.findings
        + fit.findings
        + _other_buckets(fit, scan)
        + split.findings
        + balance
        + preserved
        + alike,
        steps=steps,
        settings=settings,
        scan=scan,
        index=index,
    )


def _other_buckets(fit: Fit, scan: Scan) -> Findings:
    """A note on pictures that their metadata file was prepared for at another size, and no dataset trains at that."""
    trained: dict[Path, set[Size]] = {path: set() for path in scan.stated_buckets}
    for record, crop in zip(fit.records, fit.crops, strict=True):
        if record.path in trained:
            trained[record.path].add(crop.bucket)
    others = {path: size for path, size in scan.stated_buckets.items() if trained[path] and size not in trained[path]}
    if not others:
        return Findings()
    listed = first_names([f"{path.name}: {size}" for path, size in others.items()])
    note = (
        f"pictures trained at another size than the train_resolution of their metadata file: {len(others)} ({listed}); "
        "with the options that the file was made with, such as enable_bucket, its latent caches are used"
    )
    return Findings(notes=(note,))


def _preservation(records: Sequence[ImageRecord], specs: Sequence[DatasetSpec]) -> Findings:
    """How many pictures shall be drawn as without the network; a note where that is all of them."""
    kept = [record for record in records if specs[record.dataset].subsets[record.subset].preserves_output]
    if not kept:
        return Findings()
    if len(kept) == len(records):
        note = (
            "diff_output_preservation is set for every picture, so the network learns nothing; "
            "set it for the pictures that shall stay as they are only"
        )
        return Findings(notes=(note,))
    return Findings(remarks=(f"pictures that shall be drawn as without the network: {len(kept)}",))
