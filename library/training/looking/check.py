"""The doctor for datasets: what `tools/check_dataset.py` does. Pictures are decoded once, no weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.config.one_folder import specs_of_folder
from library.data.config.spec_building import expand_home
from library.data.files.fixing import Mended, mend
from library.data.files.hash_index import HashIndex
from library.data.files.stray_captions import StrayCaptions, find_stray_captions
from library.data.findings import Fault, Findings
from library.data.report.caption_diagnoses import missing_trigger, repeated_captions, stray_diagnoses
from library.data.report.checkup_text import checkup_json, describe_checkup
from library.data.report.diagnosis import Case, Checkup, Diagnosis, sorted_diagnoses
from library.data.report.plan_diagnoses import crop_diagnoses, findings_diagnoses, length_diagnoses
from library.errors import UnreadableError
from library.log import get_logger, only_errors
from library.tensorfile import write_bytes
from library.training.looking.hashing import hash_pictures
from library.training.looking.look import CaptionLook, look_at_captions, report_of, write_lines
from library.training.looking.outputs import FINDINGS, PAGE, refuse_output
from library.training.looking.preview import NUM_EXAMPLES, PreviewRun
from library.training.planning import DataPlan, plan_data

if TYPE_CHECKING:
    from library.data.pixels.perceptual_hash import PictureHash

STDOUT = "-"

logger = get_logger(__name__)


class CheckRun(PreviewRun):
    """Plans like a training, and tells all that is wrong instead of training.

    Attributes:
        look: At the captions of the plan, after `examine`.
        strays: What lies beside its pictures, likewise.
    """

    look: CaptionLook
    strays: StrayCaptions

    def run(self) -> int:
        """Check, mend if asked to, and write the findings down; returns the exit code.

        Raises:
            UserError: The dataset file or the model file cannot be used, or something cannot be written.
        """
        wanted = self.options.preview
        for option, file, ours in (("--output", wanted.output, PAGE), ("--json", wanted.json, FINDINGS)):
            if file is not None and str(file) != STDOUT:
                refuse_output(Path(file), option, ours)
        self.check_options()
        checkup = self.examine()
        checkup, mended = self._mended(checkup) if wanted.fix else (checkup, [])
        self._write(checkup, mended)
        is_failed = checkup.number("error") or (wanted.strict and checkup.number("warning"))
        return 2 if is_failed else 0

    def _mended(self, checkup: Checkup) -> tuple[Checkup, list[Mended]]:
        """What is found after everything is mended, and what was. Names go first: with them it shows whose caption is
        whose, and that decides what else may be moved."""
        mended: list[Mended] = []
        for is_name in (True, False):
            made = mend([remedy for remedy in checkup.remedies() if (remedy.action == "renamed") is is_name])
            if made:
                with only_errors():
                    checkup = self.examine()
            mended += made
        return checkup, mended

    def make_plan(self) -> DataPlan:
        """See `Run.make_plan`; a folder alone is a dataset too."""
        options = self.options
        if not options.preview.folder:
            return super().make_plan()
        source, specs = specs_of_folder(
            Path(options.preview.folder),
            options.dataset_defaults(),
            options.given,
            bucket_multiple=self.family.bucket_multiple,
        )
        return plan_data(source, specs, self.plan_settings(), index_dir=options.cache.index_dir)

    def examine(self) -> Checkup:
        """Plan, decode what was not decoded before, and find everything."""
        strict = self.make_plan()
        self.set_plan(self._without_caption_faults(strict))
        self.files = None
        if self.options.model.pretrained_model_name_or_path:
            self.inspect_files()
        hashes = hash_pictures(self.plan.records, self.plan.index, HashIndex(self.options.cache.index_dir))
        found = self._decode()
        plan = self.plan
        self.look = look_at_captions(self.family, self.files, plan, number=NUM_EXAMPLES)
        self.strays = find_stray_captions(plan.specs, _named_files(self.options))
        found += self._told_by_plan(replace(strict.findings, faults=_faults_of(strict, plan)))
        found += self._told_by_pictures(hashes)
        sizes = ", ".join(dict.fromkeys(str(spec.resolution) for spec in plan.specs))
        return Checkup(plan.source, sizes, len(plan.records), len(plan.validation_records), sorted_diagnoses(found))

    def _without_caption_faults(self, plan: DataPlan) -> DataPlan:
        """The plan with the pictures whose captions are still to be written: they can be looked at all the same."""
        specs = [
            replace(
                spec,
                subsets=tuple(
                    replace(subset, missing_caption="allow", empty_caption="allow") for subset in spec.subsets
                ),
            )
            for spec in plan.specs
        ]
        if not plan.findings.faults or specs == list(plan.specs):
            return plan
        return plan_data(plan.source, specs, plan.settings, index_dir=self.options.cache.index_dir)

    def _decode(self) -> list[Diagnosis]:
        """What decoding masks, and pictures that have no hash, says; those that are damaged leave the plan."""
        from library.data.files.soundness import check_pixels

        try:
            pixels = check_pixels(self.plan.records, self.plan.index)
        except UnreadableError as error:
            cases = tuple(Case(detail=line) for line in str(error).splitlines())
            return [Diagnosis("error", "unreadable-file", "files that the drive does not give", "", cases)]
        if pixels.broken:
            self.set_plan(self.plan.without(pixels.broken, pixels.bad_masks))
        black = tuple(Case((mask,)) for mask in pixels.black_masks)
        return [
            Diagnosis("warning", "black-mask", "masks that let nothing be learned", "White says where to learn", black)
        ]

    def _told_by_plan(self, findings: Findings) -> Iterator[Diagnosis]:
        """What a training would say, and what it would do to pictures and captions."""
        plan, look, word = self.plan, self.look, self.options.preview.trigger_word
        needed = (*(record.path for record in plan.records), *map(Path, self._pinned()))
        is_strict = plan.settings.on_bad_file == "error"
        endings = self._caption_endings()
        yield from findings_diagnoses(findings, is_strict=is_strict, caption_endings=endings, needed=needed)
        is_told = plan.num_training or findings.problems or (is_strict and findings.faults)
        cases = () if is_told else (Case(detail="no picture is left to train on"),)
        yield Diagnosis("error", "no-pictures", "datasets without pictures that can be used", "Add pictures", cases)
        yield from stray_diagnoses(self.strays)
        yield from crop_diagnoses(plan.records, plan.crops, plan.specs, num_training=plan.num_training)
        yield from length_diagnoses(plan.records, look.texts, look.lengths, look.limits, look.note)
        yield repeated_captions(plan.records, plan.specs)
        if word is not None:
            yield missing_trigger(plan.records, look.texts, word, num_training=plan.num_training)

    def _told_by_pictures(self, hashes: Mapping[Path, PictureHash]) -> Iterator[Diagnosis]:
        """Pictures that occur twice."""
        from library.data.report.duplicate_diagnoses import duplicate_diagnoses

        return duplicate_diagnoses(
            self.plan.records,
            hashes,
            num_training=self.plan.num_training,
            distance=self.options.preview.duplicate_distance,
            caption_endings=self._caption_endings(),
            pinned=self._pinned(),
        )

    def _caption_endings(self) -> set[str]:
        return {subset.caption_extension for spec in self.plan.specs for subset in spec.subsets}

    def _pinned(self) -> set[str]:
        """Real paths of files that options, a metadata file or a link name, and of masks: moved, they would be
        missing."""
        plan = self.plan
        pinned = [record.mask for record in plan.records if record.mask is not None]
        for (dataset, subset), paths in plan.scan.files.items():
            is_named = plan.specs[dataset].subsets[subset].metadata_file is not None
            pinned += paths if is_named else ()
        pinned += [subset.metadata_file for spec in plan.specs for subset in spec.subsets if subset.metadata_file]
        return {*map(os.path.realpath, pinned), *self.strays.linked, *_named_files(self.options)}

    def _write(self, checkup: Checkup, mended: Sequence[Mended]) -> None:
        """Text or JSON to stdout, and the files that are asked for."""
        wanted = self.options.preview
        if wanted.json == STDOUT:
            write_lines(checkup_json(checkup, mended).splitlines())
        else:
            write_lines(describe_checkup(checkup, mended=mended, is_fixed=wanted.fix))
            if wanted.json is not None:
                write_bytes(wanted.json, checkup_json(checkup, mended).encode("utf-8", "replace"))
        if wanted.output is not None:
            self._write_page(wanted.output, checkup)

    def _write_page(self, output: Path, checkup: Checkup) -> None:
        from library.data.report.page.findings_panel import findings_panel
        from library.data.report.page.render import render_page

        pictures = self.pictures(self.look)
        report = report_of(self, self.look)
        write_bytes(output, render_page(report, pictures, findings_panel(checkup, pictures)).encode("utf-8", "replace"))
        logger.info("%s: open it in a browser.", output)


def _faults_of(strict: DataPlan, plan: DataPlan) -> tuple[Fault, ...]:
    """All faults; a broken picture is told as that, not for the caption that it lacks."""
    broken = {fault.picture for fault in plan.findings.faults}
    own = tuple(fault for fault in strict.findings.faults if fault.picture not in broken)
    return (*plan.findings.faults, *own)


def _named_files(options: object) -> set[str]:
    """Real paths of all that options name, whatever for; a word that is no path does no harm."""
    named: set[str] = set()
    for each in fields(options):  # type: ignore[arg-type]
        value = getattr(options, each.name)
        if is_dataclass(value):
            named |= _named_files(value)
            continue
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, (str, Path)) and "\0" not in str(part):
                named.add(os.path.realpath(expand_home(part)))
    return named
