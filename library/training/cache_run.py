"""Filling one kind of cache, without a training: what the tools of tools/cache_*.py do.

Only what is needed is loaded: the VAE for latents, the text encoders for captions, and nothing where all is valid.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from library.data.cache import TensorCache, cache_folders, files_of, other_folders
from library.data.cache.precompute import FillReport
from library.data.cache.status import cache_status, leftovers, remove_files
from library.data.problems import first_names
from library.data.report.report_text import bytes_in_words
from library.errors import DatasetError
from library.log import get_logger
from library.training.run import Run

if TYPE_CHECKING:
    import torch

    from library.training.encoding.caching import EncodingSetup, LatentCaching, TextCaching

logger = get_logger(__name__)


class CacheRun(Run):
    """Fills a cache on disk for the pictures of training and validation.

    Pictures that cannot be decoded do not stop it: they are told at the end, when all others are cached.
    """

    kind: ClassVar[str]  # as headers of cache files call it
    what: ClassVar[str]  # what an entry is made of, in the plural
    memory_option: ClassVar[str]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._faults: dict[str, str] = {}  # {entry id: message}
        self._reports: list[FillReport] = []
        self._refusal: DatasetError | None = None  # of data whose caches are looked at all the same

    def make_caching(self) -> LatentCaching | TextCaching:
        """The cache of the plan, with what is missing. No weights are read."""
        raise NotImplementedError

    def run(self) -> int:
        """From options to a complete cache; returns the exit code.

        Raises:
            DatasetError: The data is wrong; or pictures cannot be decoded, when all others are cached.
            CheckpointError: A model file is wrong.
            OutputError: Files cannot be written or removed.
        """
        self.check_options()
        self.plan_run()
        self.inspect_files()
        self.start()
        self._tell_where()
        caching = self.make_caching()
        orphans = self._left_over(caching.cache)
        if self._only_looks:
            self._show(caching, orphans)
            return 0
        if self.options.caching.cache_prune:
            self._prune(orphans)
        caching.prepare()
        caching.fill()
        self._summarise(len(caching.cache) - len(caching.missing))
        self._report_faults(caching.cache)
        return 0

    def plan_run(self) -> None:
        """As for every run; but data that is refused is looked at before it is."""
        try:
            super().plan_run()
        except DatasetError as error:
            if not (self._only_looks and hasattr(self, "plan") and self.plan.records):
                raise
            self._refusal = error

    def _show(self, caching: LatentCaching | TextCaching, orphans: list[Path]) -> None:
        """What there is, in the log.

        Raises:
            DatasetError: The data is wrong.
        """
        if self.options.data.dry_run == "measure":
            logger.warning("--dry_run=measure means --dry_run here: no step is made that could be timed.")
        for line in cache_status(caching.cache, caching.missing, orphans).lines(self.kind):
            logger.info("%s", line)
        cache_dir = self.options.cache.cache_dir
        folders = {path.parent for path in (*self._pictures_set_aside(), *(r.path for r in self.plan.records))}
        others = other_folders(cache_dir, folders) if cache_dir is not None else []
        if others:
            logger.info(
                "%d folders in %s are of no picture here, and are left as they are: %s",
                len(others),
                cache_dir,
                first_names([path.name for path in others]),
            )
        if self._refusal is not None:
            raise self._refusal

    def _setup(self, dtype: torch.dtype, batch_size: int) -> EncodingSetup:
        from library.training.encoding.caching import EncodingSetup

        return EncodingSetup(
            self.family,
            self.files,
            self.plan,
            self.accelerator,
            dtype,
            batch_size,
            to_disk=True,
            cache_dir=self.options.cache.cache_dir,
            advice="Give a folder for them with --cache_dir",
            skip_cache_check=self.options.cache.skip_cache_check,
            on_fault=self._note_fault,
            on_report=self._reports.append,
        )

    def _tell_where(self) -> None:
        in_memory, to_disk = self.memory_option, f"{self.memory_option}_to_disk"
        if in_memory in self.options.given and to_disk not in self.options.given:
            logger.info("--%s: this tool writes files, as --%s does.", in_memory, to_disk)

    @property
    def _only_looks(self) -> bool:
        """Whether nothing is made; a training command that only looks at its data makes nothing here either."""
        data = self.options.data
        return bool(self.options.caching.cache_status or data.dry_run or data.debug_dataset)

    def _left_over(self, cache: TensorCache) -> list[Path]:
        if not (self._only_looks or self.options.caching.cache_prune):
            return []
        cache_dir = self.options.cache.cache_dir
        folders = cache_folders(self.plan.records, cache_dir)
        found = leftovers(cache, folders, kind=self.kind, family=self.family.name)
        spared = files_of(self._pictures_set_aside(), found, cache_dir)
        if spared:
            logger.info(
                "%s: %d files are kept that may be of pictures which are not used now: %s",
                self.kind,
                len(spared),
                first_names([path.name for path in spared]),
            )
        return [path for path in found if path not in spared]

    def _pictures_set_aside(self) -> set[Path]:
        """Pictures that are there but not in the plan: a fault may be mended, a filter changed."""
        findings = self.plan.findings
        return {fault.picture for fault in (*findings.faults, *findings.left_out)}

    def _prune(self, orphans: list[Path]) -> None:
        if self.accelerator.is_main_process:
            num_bytes = remove_files(orphans)
            logger.info(
                "%s: removed %d files that were left over (%s)", self.kind, len(orphans), bytes_in_words(num_bytes)
            )
        self.accelerator.wait_for_everyone()

    def _note_fault(self, entry_id: str, error: DatasetError) -> None:
        self._faults[entry_id] = str(error)

    def _summarise(self, num_kept: int) -> None:
        from accelerate.utils import gather_object

        reports: list[FillReport] = gather_object(self._reports)
        if not reports:
            return  # `fill` has said that all is cached
        num_made, num_encoded = (sum(getattr(r, name) for r in reports) for name in ("num_made", "num_encoded"))
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(reports[0].reasons).most_common())
        seconds = max(report.seconds for report in reports)
        logger.info(
            "%s: made %d (%s), kept %d; %.1f %s/s, %s written",
            self.kind,
            num_made,
            reasons,
            num_kept,
            num_encoded / seconds if seconds else 0,
            self.what,
            bytes_in_words(sum(report.num_bytes for report in reports)),
        )

    def _report_faults(self, cache: TensorCache) -> None:
        """End as `--on_bad_file` says, where pictures could not be decoded."""
        from accelerate.utils import gather_object

        found = {Path(cache[entry_id].about): message for entry_id, message in self._faults.items()}
        faults: dict[Path, str] = dict(gather_object(list(found.items())))
        if faults:
            self.leave_out({path: _problem(path, message) for path, message in sorted(faults.items())})
        self.set_aside()


class LatentCacheRun(CacheRun):
    """Encodes the pictures."""

    kind = "latents"
    what = "images"
    memory_option = "cache_latents"

    def make_caching(self) -> LatentCaching:
        """Latents of every picture."""
        import torch

        from library.device import encoder_dtype
        from library.training.encoding.caching import LatentCaching

        is_full = self.options.precision.no_half_vae
        dtype = torch.float32 if is_full else encoder_dtype(self.weight_dtype, self.device)
        return LatentCaching(self._setup(dtype, self.options.cache.vae_batch_size))


class TextCacheRun(CacheRun):
    """Encodes the captions, with every text encoder that there is."""

    kind = "text"
    what = "captions"
    memory_option = "cache_text_encoder_outputs"

    def make_caching(self) -> TextCaching:
        """States of every caption, and of every variant."""
        from library.device import encoder_dtype
        from library.training.encoding.caching import TextCaching
        from library.training.encoding.encoders import text_batch_size

        self.family.check_devices(self.device)
        names = [name for name in self.family.encoder_names if self.family.has_encoder(self.files, name)]
        dtype = encoder_dtype(self.weight_dtype, self.device)
        return TextCaching(self._setup(dtype, text_batch_size(self.options.cache, self.plan)), names)


def _problem(path: Path, message: str) -> str:
    """What is wrong with a picture, to follow its path: the message may be about its mask."""
    text = message.removesuffix(".")
    return text.removeprefix(f"{path} ") if text.startswith(f"{path} ") else f"cannot be used: {text}"
