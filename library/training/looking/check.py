"""The doctor for datasets: what `tools/check_dataset.py` does. Pictures are decoded once, no weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.config.one_folder import specs_of_folder
from library.data.files.fixing import Mended, mend
from library.data.files.hash_index import HashIndex
from library.data.files.index import FileState, file_state
from library.data.files.soundness import WORTH_A_BAR
from library.data.files.stray_captions import find_stray_captions
from library.data.findings import Fault, Findings
from library.data.report.caption_diagnoses import missing_trigger, repeated_captions, stray_diagnoses
from library.data.report.checkup_text import checkup_json, describe_checkup
from library.data.report.diagnosis import Case, Checkup, Diagnosis, sorted_diagnoses
from library.data.report.plan_diagnoses import crop_diagnoses, findings_diagnoses, length_diagnoses
from library.errors import DatasetError, UnreadableError
from library.log import get_logger
from library.tensorfile import write_atomically
from library.training.looking.look import CaptionLook, look_at_captions, report_of, write_lines
from library.training.looking.preview import NUM_EXAMPLES, PreviewRun, check_writable
from library.training.planning import DataPlan, plan_data

if TYPE_CHECKING:
    from library.data.pixels.perceptual_hash import PictureHash
    from library.records import ImageRecord

STDOUT = "-"

logger = get_logger(__name__)


class CheckRun(PreviewRun):
    """Plans like a training, and tells all that is wrong instead of training.

    Attributes:
        look: At the captions of the plan, after `examine`.
    """

    look: CaptionLook

    def run(self) -> int:
        """Check, mend if asked to, and write the findings down; returns the exit code.

        Raises:
            UserError: The dataset file or the model file cannot be used, or something cannot be written.
        """
        wanted = self.options.preview
        for option, file in (("--output", wanted.output), ("--json", wanted.json)):
            if file is not None and str(file) != STDOUT:
                check_writable(Path(file), option)
        self.check_options()
        checkup, mended = self.examine(), []
        if wanted.fix:
            mended = mend(checkup.remedies())
            checkup = self.examine() if mended else checkup
        self._write(checkup, mended)
        is_failed = checkup.number("error") or (wanted.strict and checkup.number("warning"))
        return 2 if is_failed else 0

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
        hashes = self._hashes()
        found = self._decode()
        plan = self.plan
        self.look = look_at_captions(self.family, self.files, plan, number=NUM_EXAMPLES)
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
            self.set_plan(self.plan.without(pixels.broken))
        black = tuple(Case((mask,)) for mask in pixels.black_masks)
        return [
            Diagnosis("warning", "black-mask", "masks that let nothing be learned", "White says where to learn", black)
        ]

    def _hashes(self) -> dict[Path, PictureHash]:
        """From memory where a file is the same; what is decoded here is known to be sound."""
        from tqdm import tqdm

        index, memory = self.plan.index, HashIndex(self.options.cache.index_dir)
        records = {record.path: record for record in self.plan.records}
        states = {path: state for path in records if (state := _state(path)) is not None}
        hashes = {path: own for path, state in states.items() if (own := memory.get(path, state)) is not None}
        new = [records[path] for path in states if path not in hashes]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            made = threads.map(_hash_of, new)
            shown = tqdm(made, "looking at pictures", len(new), disable=len(new) < WORTH_A_BAR)
            for record, value in zip(new, shown, strict=True):
                if value is None:
                    continue
                hashes[record.path] = value
                memory.remember(record.path, states[record.path], value)
                index.remember_sound(record.path, states[record.path])
        memory.save()
        index.save()
        return hashes

    def _told_by_plan(self, findings: Findings) -> Iterator[Diagnosis]:
        """What a training would say, and what it would do to pictures and captions."""
        plan, look, word = self.plan, self.look, self.options.preview.trigger_word
        needed = {record.path for record in plan.records} | self._pinned()
        is_strict = plan.settings.on_bad_file == "error"
        endings = self._caption_endings()
        yield from findings_diagnoses(findings, is_strict=is_strict, caption_endings=endings, needed=needed)
        is_told = plan.num_training or findings.problems or (is_strict and findings.faults)
        cases = () if is_told else (Case(detail="no picture is left to train on"),)
        yield Diagnosis("error", "no-pictures", "datasets without pictures that can be used", "Add pictures", cases)
        yield from stray_diagnoses(find_stray_captions(plan.specs))
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

    def _pinned(self) -> set[Path]:
        """Pictures that a metadata file names: moved, they would be missing."""
        files = self.plan.scan.files
        named = [place for place in files if self.plan.specs[place[0]].subsets[place[1]].metadata_file is not None]
        return {path for place in named for path in files[place]}

    def _write(self, checkup: Checkup, mended: Sequence[Mended]) -> None:
        """Text or JSON to stdout, and the files that are asked for."""
        wanted = self.options.preview
        if wanted.json == STDOUT:
            write_lines(checkup_json(checkup, mended).splitlines())
        else:
            write_lines(describe_checkup(checkup, mended=mended, is_fixed=wanted.fix))
            if wanted.json is not None:
                _write_file(Path(wanted.json), checkup_json(checkup, mended))
        if wanted.output is not None:
            self._write_page(wanted.output, checkup)

    def _write_page(self, output: Path, checkup: Checkup) -> None:
        from library.data.report.page.findings_panel import findings_panel
        from library.data.report.page.render import render_page

        pictures = self.pictures(self.look)
        report = report_of(self, self.look)
        _write_file(output, render_page(report, pictures, findings_panel(checkup, pictures)))
        logger.info("%s: open it in a browser.", output)


def _hash_of(record: ImageRecord) -> PictureHash | None:
    """None where the picture cannot be decoded: whoever looks for damage says why."""
    from library.data.pixels.perceptual_hash import hash_file

    try:
        return hash_file(record.path, record.size)
    except DatasetError:
        return None


def _state(path: Path) -> FileState | None:
    try:
        return file_state(path)
    except OSError:
        return None  # decoding says what is wrong


def _faults_of(strict: DataPlan, plan: DataPlan) -> tuple[Fault, ...]:
    """All faults; a broken picture is told as that, not for the caption that it lacks."""
    broken = {fault.picture for fault in plan.findings.faults}
    own = tuple(fault for fault in strict.findings.faults if fault.picture not in broken)
    return (*plan.findings.faults, *own)


def _write_file(file: Path, text: str) -> None:
    content = text.encode("utf-8", "replace")

    def write(place: Path) -> None:
        place.write_bytes(content)

    write_atomically(file, write, len(content))
