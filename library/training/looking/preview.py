"""The preview page of a dataset: what `tools/preview_dataset.py` does. Pictures are decoded, no weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.findings import Fault, Findings
from library.log import get_logger
from library.tensorfile import write_bytes
from library.training.looking.look import CaptionLook, look_at_captions, report_of
from library.training.looking.outputs import PAGE, refuse_output
from library.training.run import Run

if TYPE_CHECKING:
    from library.data.report.page.contents import PagePicture, ReadText
    from library.data.report.report import DataReport

NUM_EXAMPLES = 4  # texts of a caption that changes from use to use
MANY_PICTURES = 4000  # more make a page that browsers are slow with

logger = get_logger(__name__)


class PreviewRun(Run):
    """Plans like a training, and writes down what it sees instead of training. Faults are shown, not raised."""

    def run(self) -> int:
        """Write the page; returns the exit code.

        Raises:
            UserError: The dataset file or the model file cannot be used, or the page cannot be written.
        """
        output: Path = self.options.preview.output
        refuse_output(output, "--output", PAGE)
        self.check_options()
        self.set_plan(self.make_plan())
        self.files = None
        if self.options.model.pretrained_model_name_or_path:
            self.inspect_files()
        look = look_at_captions(self.family, self.files, self.plan, number=NUM_EXAMPLES)
        report = report_of(self, look)
        pictures = self.pictures(look)
        report = _with_damage(report, pictures)
        _write(output, report, pictures)
        _tell(output, report, pictures)
        return 0

    def pictures(self, look: CaptionLook) -> list[PagePicture]:
        """Every picture of the page; with `--max_pictures` that many of those that are used, evenly spread."""
        from library.data.report.page.contents import page_pictures

        plan = self.plan
        chosen = _spread(len(plan.records), self.options.preview.max_pictures)
        if len(chosen) > MANY_PICTURES:
            logger.warning("a page with %d pictures is slow in a browser; try --max_pictures 2000.", len(chosen))
        read = self._read_texts(look)
        return page_pictures(
            [plan.records[index] for index in chosen],
            [plan.crops[index] for index in chosen],
            plan.specs,
            num_training=sum(index < plan.num_training for index in chosen),
            findings=plan.findings,
            texts=[[read[text] for text in look.texts[index]] for index in chosen],
            cells=self.family.pixels_per_latent,
            progress=_bar,
        )

    def _read_texts(self, look: CaptionLook) -> dict[str, ReadText]:
        """Every text with its lengths, and where encoders stop reading it."""
        from library.data.report.page.contents import ReadText

        read = {}
        for text, lengths in look.lengths.items():
            tokens = {encoder: (number, look.limits[encoder]) for encoder, number in lengths.items()}
            too_long = [encoder for encoder, (number, limit) in tokens.items() if number > limit]
            cuts = self._cuts(look.tokenizers, too_long, text)
            read[text] = ReadText(text, tokens, cuts)
        return read

    def _cuts(self, tokenizers: Mapping[str, Any], encoders: Sequence[str], text: str) -> dict[str, int]:
        found = {encoder: self.family.caption_cuts(tokenizers[encoder], text) for encoder in encoders}
        return {encoder: cuts[encoder] for encoder, cuts in found.items() if encoder in cuts}


def _spread(number: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `number`, evenly spread."""
    if limit is None or number <= limit:
        return list(range(number))
    return [index * number // limit for index in range(limit)]


def _bar(pictures: Iterator[PagePicture], number: int) -> Iterator[PagePicture]:
    from tqdm import tqdm

    yield from tqdm(pictures, "looking at pictures", number)


def _with_damage(report: DataReport, pictures: Sequence[PagePicture]) -> DataReport:
    """The report with the pictures that turned out to be damaged behind an intact header."""
    from library.data.report.report import group_by_reason

    known = {fault.picture for fault in (*report.findings.faults, *report.findings.left_out)}
    broken = [picture for picture in pictures if picture.problem is not None and picture.path not in known]
    faults = tuple(Fault(picture.path, _problem_of(picture), kind="broken") for picture in broken)
    findings = report.findings + Findings(faults=faults)
    return replace(report, findings=findings, skipped=group_by_reason(findings))


def _problem_of(picture: PagePicture) -> str:
    """The problem without the path in front and the full stop."""
    return (picture.problem or "").removeprefix(str(picture.path)).strip().removesuffix(".")


def _write(output: Path, report: DataReport, pictures: Sequence[PagePicture]) -> None:
    from library.data.report.page.render import render_page

    write_bytes(output, render_page(report, pictures).encode("utf-8", "replace"))


def _tell(output: Path, report: DataReport, pictures: Sequence[PagePicture]) -> None:
    from library.data.problems import counted
    from library.data.report.report_text import bytes_in_words

    number = len(report.findings.problems) + len(report.findings.faults)
    if number:
        logger.warning("%s would stop a training; the page lists them.", counted(number, "problem"))
    size = bytes_in_words(output.stat().st_size)
    logger.info("%s: %s, %s. Open it in a browser.", output, counted(len(pictures), "picture"), size)
