"""What is shown and recorded of a run, step by step: one place that hands each number to whoever shows it.

All numbers come one step late from the host; nothing here waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.device import memory_words
from library.errors import OutputError
from library.log import get_logger
from library.memory_use import gpu_memory, memory_in_use, spill_warning
from library.training.processes import in_all_processes
from library.training.saving.saver import average_path
from library.training.watching.loss_records import LossRecords
from library.training.watching.numbers import NUMBERS, RunNumbers, write_numbers
from library.training.watching.progress import ProgressBar, rate_to_show
from library.training.watching.scalars import epoch_scalars, step_scalars, validation_scalars
from library.training.watching.summary import RunSummary, SavedFile, WrittenFile, summary_lines

if TYPE_CHECKING:
    from library.training.built_training import BuiltTraining
    from library.training.sampling.prompts import SamplePrompt
    from library.training.stepping.step_log import StepReport
    from library.training.watching.curves import Curves
    from library.training.watching.trackers import Trackers

logger = get_logger(__name__)

NUM_HARDEST = 3  # pictures that the summary names
MOST_AVERAGED = 1000  # steps
FIRST_WRITING = 60.0  # seconds after the start


class Watch:
    """The observers of a run.

    Args:
        trainer: Whose numbers they are.

    Attributes:
        validations: (step, loss) of each.
        shows_bar: Whether steps are shown by a bar.
    """

    def __init__(self, trainer: BuiltTraining) -> None:
        from library.training.watching.curves import CurvePicture
        from library.training.watching.trackers import Trackers

        self.trainer = trainer
        self.records = LossRecords()
        self.validations: list[tuple[int, float]] = []
        self.shows_bar = True
        self._rates: dict[str, list[float]] = {}
        self._is_main = trainer.accelerator.is_main_process
        self._bar: ProgressBar | None = None
        self._first_step, self._started = 0, time.monotonic()
        self._next_writing = self._started + FIRST_WRITING
        self._curves = CurvePicture(self._place("curves.png"))
        options = trainer.options
        self._trackers: Trackers = Trackers.start(
            options.logging,
            options.values(),
            is_main=self._is_main,
            output_dir=trainer.folder,
            project=options.project,
        )

    def _place(self, ending: str) -> Path:
        """A file beside the saved ones."""
        name = self.trainer.options.saving.output_name
        return self.trainer.folder / (f"{name}_{ending}" if name else ending)

    # While training

    def start(self, step: int) -> None:
        """The first step comes."""
        self._first_step, self._started = step, time.monotonic()
        is_shown = self.shows_bar and self.trainer.accelerator.is_local_main_process
        self._bar = ProgressBar(self.trainer.course.num_steps, initial=step, is_shown=is_shown)

    def step(self, report: StepReport) -> None:
        """A step is known."""
        trainer = self.trainer
        names = [_key(trainer, sample.record) for sample in report.samples]
        rows = zip(names, (sample.timestep for sample in report.samples), report.losses, strict=True)
        self.records.add(trainer.course.epoch(report.step), rows)
        average, rates = self._average(), report.rates
        for name, rate in rates.items():
            self._rates.setdefault(name, [float("nan")] * (report.step - 1)).append(rate)
        if self._bar is not None:
            shown = rate_to_show(rates, trainer.family.encoder_names)
            self._bar.update(loss=average, rate=shown, memory=memory_in_use(trainer.device))
        if report.step == self._first_step + 1:
            self._tell_spill()
        if self._trackers:
            scalars = step_scalars(loss=report.loss, average=average, norms={"avg_grad_norm": report.grad_norm})
            self._trackers.log({**scalars, **rates}, report.step)

    def _average(self) -> float | None:
        """Mean loss of the last epoch's steps; of long epochs, of as many as can be added up in every step."""
        return self.trainer.log.mean_of_last(self._num_averaged())

    def _num_averaged(self) -> int:
        return min(self.trainer.plan.steps.steps_per_epoch, MOST_AVERAGED, max(1, len(self.trainer.log.losses)))

    def _tell_spill(self) -> None:
        """Whether memory has spilled over into that of the host, which makes every step slow."""
        memory = gpu_memory(self.trainer.device)
        if memory is not None and (line := spill_warning(*memory)):
            logger.warning("%s", line)

    def gather(self) -> None:
        """Every process knows what all have seen. All take part."""
        rows = in_all_processes(self.trainer.accelerator, self.records.take_new())
        self.records.extend(rows)

    def gather_here(self) -> None:
        """Count what this process has seen, where the others cannot be asked any more."""
        self.records.extend(self.records.take_new())

    def epoch_end(self, epoch: int, step: int) -> None:
        """An epoch is over; all processes take part."""
        self.gather()
        if self._is_main:
            self._trackers.log(epoch_scalars(self.records.epoch_mean(), self.records.timestep_bins()), step)
            if time.monotonic() > self._next_writing:
                self.write()

    def validation(self, step: int, loss: float) -> None:
        """The validation loss after a step."""
        self.validations = [known for known in self.validations if known[0] < step] + [(step, loss)]
        is_epoch_end = self.trainer.course.ended_epoch(step) is not None
        self._trackers.log(validation_scalars(loss, self._average(), is_epoch_end=is_epoch_end), step)
        if self._is_main:
            logger.info("validation loss at step %d: %.5f", step, loss)

    def pictures(self, drawn: Sequence[tuple[SamplePrompt, Path]], step: int) -> None:
        """Sample pictures were drawn."""
        prompts = [prompt for prompt, _ in drawn]
        self._trackers.log_pictures(
            [path for _, path in drawn],
            [prompt.prompt for prompt in prompts],
            step,
            numbers=[prompt.index for prompt in prompts],
        )

    def back_to(self, step: int) -> None:
        """The run goes back to an earlier step."""
        if self._bar is not None:
            self._bar.update(step - self.trainer.step)

    def close_bar(self) -> None:
        """No step comes any more."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # At the end

    def finish(self, uploads: Iterable[str] = (), exit_code: int = 0) -> None:
        """Say how the run went. On the main process."""
        for line in summary_lines(self._summary(tuple(uploads))):
            logger.info("%s", line)
        self._trackers.finish(exit_code)

    def write(self) -> None:
        """The curves and the table of losses by picture; at most a hundredth of the time goes into it."""
        started = time.monotonic()
        self._curves.draw(self._curves_now())
        try:
            self.records.write_by_image(self._place("loss_by_image.csv"))
            write_numbers(self._place(NUMBERS), self._numbers())
        except OutputError as error:
            logger.error("not written, training goes on: %s", error)
        now = time.monotonic()
        self._next_writing = now + 100 * (now - started)

    def _curves_now(self) -> Curves:
        from library.training.watching.curves import Curves

        trainer, num_known = self.trainer, len(self.trainer.log.losses)
        per_epoch = trainer.plan.steps.steps_per_epoch
        return Curves(
            steps=range(1, num_known + 1),
            losses=trainer.log.losses,
            rates={name.removeprefix("lr/"): rates[:num_known] for name, rates in self._rates.items()},
            validation=self.validations,
            epoch_ends=range(per_epoch, num_known + 1, per_epoch),
            bins=self.records.timestep_bins(),
            title=trainer.options.saving.output_name or "",
        )

    def _numbers(self) -> RunNumbers:
        trainer = self.trainer
        return RunNumbers(
            steps=trainer.step,
            max_steps=trainer.course.num_steps,
            losses=tuple(trainer.log.losses),
            validation=tuple(self.validations),
            saved=tuple((str(trainer.folder / file.name), file.step) for file in trainer.saver.files),
        )

    def _summary(self, uploads: Sequence[str]) -> RunSummary:
        trainer = self.trainer
        written = [WrittenFile("curves", self._curves.path), WrittenFile("losses", self._place("loss_by_image.csv"))]
        sampler = trainer.sampler
        paths = [(file, trainer.folder / file.name) for file in trainer.saver.files]
        shown = [(file, path if trainer.ema is None else average_path(path)) for file, path in paths]
        return RunSummary(
            steps=trainer.step,
            max_steps=trainer.course.num_steps,
            epochs=trainer.course.epochs_done(trainer.step),
            max_epochs=trainer.plan.steps.epochs,
            seconds=time.monotonic() - self._started,
            first_step=self._first_step,
            mean_loss=self._average(),
            averaged_steps=self._num_averaged(),
            is_epoch_cut=bool(trainer.step % trainer.plan.steps.steps_per_epoch),
            skipped_steps=trainer.loop.num_skipped,
            saved=[SavedFile(path, file.step) for file, path in shown if path.exists()],
            validation=self.validations,
            hardest=self.records.hardest(NUM_HARDEST) if len(trainer.plan.training_records) > NUM_HARDEST else (),
            uploads=uploads,
            sample_problems=sampler.summary() if sampler is not None else (),
            written=[item for item in written if item.path.exists()],
            peak_memory=memory_words(trainer.device),
        )

    # Resuming

    def state(self) -> dict[str, Any]:
        """What is known so far, as JSON. A rate that stays is written once, with the number of its steps."""
        rates = {name: _runs(own) for name, own in self._rates.items()}
        return {"records": self.records.state(), "validations": self.validations, "rates": rates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.records.load_state(state["records"])
        self.validations = [(int(step), float(loss)) for step, loss in state["validations"]]
        self._rates = {
            name: [float(rate) for rate, number in runs for _ in range(number)] for name, runs in state["rates"].items()
        }


def _key(trainer: BuiltTraining, record: int) -> str:
    return trainer.plan.records[record].key


def _runs(values: Sequence[float]) -> list[list[float | int]]:
    """[value, how often in a row]. NaN, which stands for steps before the first one that is known, equals itself."""
    groups = groupby(values, key=lambda value: None if math.isnan(value) else value)
    return [[math.nan if value is None else value, len(list(same))] for value, same in groups]
