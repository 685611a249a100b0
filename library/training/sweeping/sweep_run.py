"""The trainings of a sweep: checked together, then trained one after the other or in turn, and ranked."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from library.data.problems import counted
from library.data.report.report_text import bytes_in_words
from library.errors import DatasetError, OptionError, UserError
from library.log import get_logger, only_errors
from library.options.entry import INTERRUPTED
from library.training.sweeping.comparable import differing
from library.training.sweeping.interleaving import Turn, train_in_turn
from library.training.sweeping.own_process import run_until_stopped
from library.training.sweeping.shared_base import SharedBase, why_not_shared
from library.training.sweeping.standings import Standing, ranked, standing_of, write_standings
from library.training.sweeping.sweep_file import SweepFile
from library.training.sweeping.sweep_page import write_page
from library.training.sweeping.variation_files import VariationFiles, files_of

if TYPE_CHECKING:
    from library.training.forecast.figures import Forecast
    from library.training.network_trainer import NetworkTrainer

logger = get_logger(__name__)

PAGE, RANKING = "sweep.html", "sweep.json"
_SPARE = 0.95  # of the memory that is there
_IS_FREE = re.compile(r"lr|learning_rate|seed|_steps|_epochs|^output_|config")  # options that take no memory
_OF_ONE = ("what trains", "optimizer", "average", "encoders")  # parts of a forecast that each training has


@dataclass
class SweepRun:
    """One start of a sweep.

    Attributes:
        sweep: What its file says.
        output_dir: Of everything that is written.
        make_trainer: A training from the arguments of its script.
        command: The command that starts a training from its options file.
        together: "auto", "yes" or "no".
    """

    sweep: SweepFile
    output_dir: Path
    make_trainer: Callable[[Sequence[str]], NetworkTrainer]
    command: Callable[[Path], list[str]]
    together: str = "auto"
    problems: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def run(self) -> int:
        """Train what is not yet trained; returns the exit code: 2 where a variation failed."""
        self.files = files_of(self.sweep, self.output_dir)
        for files in self.files:
            files.refuse_others()
        plans = self._checked()
        for files in self.files:
            files.write(files.folder)
        left = [files for files in self.files if not _is_finished(files)]
        if len(left) < len(self.files):
            logger.info("%d of %d variations are finished already.", len(self.files) - len(left), len(self.files))
        why = self._why_one_by_one([plans[files.name] for files in left])
        is_done = self._together(left) if left and why is None else self._one_by_one(left)
        for files in self.files if is_done else ():
            if not _is_finished(files):
                self.problems.setdefault(files.variation.name, "it ended before its last step, see its messages above")
        self._write()
        self._tell()
        if not is_done:
            logger.info("stopped; the same command goes on with it.")
            return INTERRUPTED
        return 2 if self.problems else 0

    def show(self) -> None:
        """What would be trained, and how. Nothing is written."""
        self.files = files_of(self.sweep, self.output_dir)
        plans = self._checked()
        for files in self.files:
            trainer = plans[files.name]
            logger.info("%s: %s", files.variation.name, trainer.plan.steps.describe())
        why = self._why_one_by_one(list(plans.values()))
        logger.info(
            "%s, %s",
            counted(len(self.files), "variation"),
            f"one after the other: {why}" if why else "in turn beside one base",
        )

    # Before

    def _checked(self) -> dict[str, NetworkTrainer]:
        """{name: training, its data planned and its files inspected}, none of which has begun.

        Raises:
            UserError: Something is wrong with one of them.
        """
        plans = {}
        for files in self.files:
            try:
                with only_errors(), TemporaryDirectory() as place:
                    arguments = files.write(Path(place))
                    trainer = self.make_trainer([*arguments, "--dry_run"])
                    trainer.check_options()
                    trainer.plan_run()
                    trainer.inspect_files()
            except UserError as error:
                told = str(error).replace(f"{place}{os.sep}", "")
                raise type(error)(f"variation '{files.variation.name}': {told}") from error
            plans[files.name] = trainer
        self._check_validation(plans)
        return plans

    def _check_validation(self, plans: dict[str, NetworkTrainer]) -> None:
        """The same pictures are kept for validation by all, and the loss is of one kind."""
        kept = {name: _validation_of(trainer) for name, trainer in plans.items()}
        first = next(iter(kept))
        if not kept[first]:
            raise OptionError(
                f"sweep file {self.sweep.path}: no picture is kept for validation, so there is nothing to rank by. "
                "Give validation_split below [options], or in the dataset file."
            )
        for name, pictures in kept.items():
            if pictures != kept[first]:
                raise DatasetError(
                    f"sweep file {self.sweep.path}: '{name}' keeps other pictures for validation than '{first}', or in "
                    "other sizes, so their losses cannot be compared."
                )
        if others := differing([trainer.options for trainer in plans.values()]):
            names = ", ".join(f"--{name}" for name in others)
            self.remarks.append(
                f"The variations differ in {names}, which changes the loss itself: compare their pictures, not their "
                "losses."
            )
            logger.warning("%s", self.remarks[-1])

    def _why_one_by_one(self, trainers: list[NetworkTrainer]) -> str | None:
        """Why the trainings do not take their steps in turn; None where they do."""
        if self.together == "no" or len(trainers) < 2:
            return "as asked for" if self.together == "no" else "there is one only"
        reason = why_not_shared(trainers)
        if reason is not None and self.together == "yes":
            raise OptionError(f"--together=yes is not possible: {reason}. Leave it out, or make them alike in that.")
        if reason is None and self.together == "auto":
            reason = _no_room(trainers)
        return reason

    # Training

    def _together(self, left: Sequence[VariationFiles]) -> bool:
        """All in this process; whether they have come to their ends."""
        base = SharedBase()
        turns = []
        for files in left:
            trainer = self.make_trainer(files.arguments(files.folder))
            trainer.make_family = partial(_shared, base, trainer.make_family)  # type: ignore[method-assign]
            turns.append(Turn(files.variation.name, trainer))
        logger.info("%d trainings take their steps in turn, beside one base.", len(turns))
        return train_in_turn(turns, self._end)

    def _end(self, turn: Turn) -> None:
        if turn.problem:
            self.problems[turn.name] = turn.problem
        self._try_to_write()

    def _try_to_write(self) -> None:
        """A page that cannot be written is no reason to end a training."""
        try:
            self._write()
        except UserError as error:
            logger.error("the ranking is not written, training goes on: %s", error)

    def _one_by_one(self, left: Sequence[VariationFiles]) -> bool:
        """Each in a process of its own, as its command would start it; whether none was stopped."""
        for files in left:
            command = self.command(files.options_path)
            logger.info("%s: %s", files.variation.name, shlex.join(command))
            code, is_stopped = run_until_stopped(command)
            if is_stopped or code == INTERRUPTED:
                return False
            if code:
                self.problems[files.variation.name] = f"it ended with exit code {code}, see its messages above"
            self._try_to_write()
        return True

    # After

    def _standings(self) -> list[Standing]:
        return [standing_of(files, self.problems.get(files.variation.name, "")) for files in self.files]

    def _write(self) -> None:
        standings = self._standings()
        write_standings(self.output_dir / RANKING, standings)
        write_page(self.output_dir / PAGE, f"Sweep {self.sweep.path.name}", standings, self.remarks)

    def _tell(self) -> None:
        for rank, standing in enumerate(ranked(self._standings()), 1):
            if standing.best is None:
                logger.info("%s: %s", standing.name, standing.state)
                continue
            loss, step, file = standing.best
            logger.info("%d. %s: validation loss %.5f at step %d %s", rank, standing.name, loss, step, file)
        logger.info("page: %s", self.output_dir / PAGE)


def _shared(base: SharedBase, make_family: Callable[[], Any]) -> Any:
    return base.family_like(make_family())


def _is_finished(files: VariationFiles) -> bool:
    numbers = standing_of(files).numbers
    return numbers is not None and numbers.is_finished


def _validation_of(trainer: NetworkTrainer) -> list[Any]:
    """The pictures that are kept for validation, and how they are cut."""
    plan = trainer.plan
    kept = {(record.dataset, record.key) for record in plan.validation_records}
    return sorted(
        (record.key, str(crop))
        for record, crop in zip(plan.records, plan.crops, strict=True)
        if (record.dataset, record.key) in kept
    )


def _no_room(trainers: Sequence[NetworkTrainer]) -> str | None:
    """Why these trainings do not fit into memory together; None where they do.

    The base and the activations of one step are there once, what trains and its optimizer for each.
    """
    from library.memory_use import available_host_memory, device_memory_to_have
    from library.training.forecast.forecast import Forecaster

    made: dict[str, Forecast] = {}
    with only_errors():
        for trainer in trainers:
            key = _memory_key(trainer)
            made[key] = made.get(key) or Forecaster(trainer).of(trainer.options)
    forecasts = [made[_memory_key(trainer)] for trainer in trainers]
    own = [sum(forecast.training.parts.get(part, 0) for part in _OF_ONE) for forecast in forecasts]
    needed = max(f.peak.device - each for f, each in zip(forecasts, own, strict=True)) + sum(own)
    if forecasts[0].is_on_cpu:
        needed += forecasts[0].process
    there = available_host_memory() if forecasts[0].is_on_cpu else device_memory_to_have()
    if there is None or needed <= _SPARE * there:
        return None
    return f"together they would need about {bytes_in_words(needed)} of memory, and {bytes_in_words(there)} are there"


def _memory_key(trainer: NetworkTrainer) -> str:
    """Equal where two trainings take as much memory: they differ in nothing but rates, seeds, steps and names."""
    values = {name: value for name, value in trainer.options.values().items() if not _IS_FREE.search(name)}
    return repr((values, sorted({crop.bucket for crop in trainer.plan.crops})))
