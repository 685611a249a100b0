"""The one training loop: steps in their order, and after each what falls due.

What happens after a step is a plain sequence: samples, the validation loss, files, and the state last, so that a state
says that everything up to its step is done. All processes run through the same sequence; whatever one of them alone
learns (a signal, a picture that has vanished) travels with the exchange of the gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from library.errors import DatasetError, DivergedError, EnvironmentFault, UserError
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.records import Batch
from library.training.processes import in_all_processes
from library.training.saving.saver import Save
from library.training.stepping.step_log import StepReport

if TYPE_CHECKING:
    from library.training.built_training import BuiltTraining

logger = get_logger(__name__)

MAX_RETURNS = 1  # how often a run goes back to a state
MOST_NAMES = 4  # of pictures in a line
_KINDS = {kind.__name__: kind for kind in (DatasetError, EnvironmentFault)}


class _Diverging(Exception):
    """Too many steps in a row were not finite."""


class Loop:
    """Runs the steps of a trainer from where it stands.

    Args:
        trainer: With everything built. Its `step` counts the steps that are done.

    Attributes:
        is_stopped: The run was asked to stop before its last step.
        is_saved: The state of a run that was stopped could be written.
        num_skipped: Steps that were passed over.
        num_bad: The last so many of them in a row.
    """

    def __init__(self, trainer: BuiltTraining) -> None:
        self.trainer = trainer
        self.is_stopped = False
        self.is_saved = True
        self._is_stop_agreed = False
        self.num_skipped = 0
        self.num_bad = self._last_bad = 0
        self._failure: UserError | None = None
        self._schedules: dict[int, tuple[dict[str, Any], list[float]]] = {}

    def steps(self) -> Iterator[None]:
        """All steps, each when it is asked for, or up to the one after which the run shall stop.

        Raises:
            DatasetError: Data cannot be read any more; what was trained is saved.
            EnvironmentFault: Out of memory; likewise.
            DivergedError: Steps are not finite any more.
        """
        while True:
            try:
                yield from self._steps()
                return
            except _Diverging:
                self._go_back()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.trainer.shards.refuse_to_go_on(error)
                self._save_before()
                reason = str(error).partition("\n")[0]
                raise EnvironmentFault(
                    f"out of memory after step {self.trainer.step} ({reason}). Use --fit with the memory of the "
                    "GPU, which chooses settings; or --gradient_checkpointing, --blocks_to_swap, a lower resolution, a "
                    "smaller batch or an optimizer in 8 bits."
                ) from error

    def _steps(self) -> Iterator[None]:
        trainer, course = self.trainer, self.trainer.course
        if trainer.step == 0 and trainer.options.sampling.sample_at_first:
            trainer.draw_samples(epoch_end=0)
        with closing(trainer.batches_from(trainer.step)) as batches:  # its processes would outlive an error by minutes
            while trainer.step < course.num_steps:
                self._note_schedule()
                trainer.optimizer_step(self._next_batches(batches))
                self._handle(trainer.take_report())
                self._after_step()
                if self._is_stop_due():
                    self._stop()
                    return
                yield
        self._handle(trainer.flush_report())

    def _next_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The batches of the next step; none where this process cannot read one, which the others are told."""
        trainer = self.trainer
        if self._failure is not None:
            return []
        try:
            return [next(batches) for _ in range(trainer.course.num_batches(trainer.step + 1))]
        except DatasetError as error:
            self.fail(error)
            return []

    def fail(self, error: UserError) -> None:
        """This process cannot go on. Alone it stops here, among others it tells them with the next exchange.

        Raises:
            UserError: The error, where there is one process.
        """
        if self.trainer.accelerator.num_processes == 1:
            self._save_before()
            raise error
        self._failure = error

    @property
    def has_failed(self) -> bool:
        """Whether this process takes part only to tell the others that it cannot go on."""
        return self._failure is not None

    # What a step came to

    def _handle(self, report: StepReport | None) -> None:
        if report is None:
            return
        if report.has_failed:
            self._end_together(report.step)
        self.trainer.watch.step(report)
        if report.is_stop_asked:
            self._is_stop_agreed = True
        if not report.is_skipped:
            self.num_bad = 0
            return
        self.num_skipped += 1
        self.num_bad += 1
        self._last_bad = report.step
        self._tell_skipped(report)
        if self.num_bad >= self.trainer.options.training.max_bad_steps:
            raise _Diverging

    def _tell_skipped(self, report: StepReport) -> None:
        """Every process takes part: what is not finite may lie in the samples of another one."""
        accelerator = self.trainer.accelerator
        broken = in_all_processes(accelerator, [*report.broken])
        what, samples = ("loss", broken) if broken else ("gradient", in_all_processes(accelerator, [*report.samples]))
        records = self.trainer.plan.records
        names = [f"{records[sample.record].path} at timestep {sample.timestep:.0f}" for sample in samples]
        logger.warning(
            "step %d was skipped: the %s is not finite (%d in a row). Trained in it: %s",
            report.step,
            what,
            self.num_bad,
            "; ".join(names[:MOST_NAMES]) + ("; ..." if len(names) > MOST_NAMES else ""),
        )

    def _end_together(self, step: int) -> None:
        """End all processes with the cause that one of them has found."""
        trainer = self.trainer
        own = [] if self._failure is None else [(type(self._failure).__name__, str(self._failure))]
        name, message = in_all_processes(trainer.accelerator, own)[0]
        error = _KINDS.get(name, DatasetError)(message)
        self._take_back(step - 1)
        self._save_before()
        raise error

    def _take_back(self, step: int) -> None:
        """Steps in which a process had failed have changed no weight; now they do not count either."""
        trainer = self.trainer
        schedule, rates = self._schedules[step]
        trainer.step = step
        trainer.schedule.load_state_dict(schedule)
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        del trainer.log.losses[step:]
        trainer.log.discard()

    def _note_schedule(self) -> None:
        """Where the schedule stands before a step, for as long as it may turn out that a process had failed in it."""
        trainer = self.trainer
        if trainer.accelerator.num_processes > 1:
            rates = [group["lr"] for group in trainer.optimizer.param_groups]
            self._schedules[trainer.step] = copy.deepcopy(trainer.schedule.state_dict()), rates
            self._schedules.pop(trainer.step - 3, None)

    def _save_before(self) -> None:
        """Keep what was trained so far. The step that failed has changed nothing, unless it is half way."""
        trainer = self.trainer
        if (report := trainer.flush_report()) is not None and not report.has_failed:
            trainer.watch.step(report)
        if trainer.step <= trainer.continuation.first_step:
            return
        save = trainer.saver.plan.of_step(trainer.step)
        if trainer.make_step.is_halfway:
            self._save_halfway(save)
            return
        logger.error("the run cannot go on; what was trained is saved first.")
        trainer.save_model(save)
        if trainer.ema is None or trainer.accelerator.num_processes == 1:  # else the average has moved meanwhile
            trainer.save_state(save)

    def _save_halfway(self, save: Save) -> None:
        """Weights between two steps are no state to go on from, and as a model they are less than any other file."""
        trainer, state = self.trainer, self.trainer.continuation.last_state
        logger.error(
            "the run cannot go on: it ends inside step %d, which parts of the weights may have made and others not, so "
            "no state is saved and no file replaced. %s",
            trainer.step + 1,
            "There is none to go on from." if state is None else f"The last good state is {state}.",
        )
        if not any((trainer.folder / name).exists() for name in trainer.saves.names_of(save.model)):
            trainer.save_model(replace(save, old_model=None))

    # After a step

    def _after_step(self) -> None:
        trainer, step = self.trainer, self.trainer.step
        saves = self._worth_saving(trainer.saves.due(step))
        epoch = trainer.course.ended_epoch(step)
        of_step = [save for save in saves if save == trainer.saves.of_step(step)]
        of_epoch = [save for save in saves if save not in of_step]
        trainer.sample_if_due(epoch_end=None)
        self._validate_if_due(epoch, is_saved=bool(saves) or step == trainer.course.num_steps)
        self._save(of_step)
        self._save(of_epoch)
        if epoch is not None:
            trainer.sample_if_due(epoch_end=epoch)
            self._read_all()
            trainer.end_epoch_of_schedule()
            trainer.watch.epoch_end(epoch, step)
        if trainer.options.saving.save_state:
            for save in saves:
                self._read_all()
                trainer.save_state(save)

    def _worth_saving(self, saves: list[Save]) -> list[Save]:
        """None while steps are not finite: such weights are not worth the files of better ones."""
        if saves:
            self._read_all()
        if saves and self.num_bad:
            logger.warning(
                "nothing is saved at step %d: the last %d steps were skipped.", self.trainer.step, self.num_bad
            )
            return []
        return saves

    def _save(self, saves: list[Save]) -> None:
        for save in saves:
            self.trainer.save_model(save)

    def _validate_if_due(self, epoch: int | None, *, is_saved: bool) -> None:
        """What is saved is validated too, so that the best file can be named."""
        trainer = self.trainer
        if trainer.validation is not None and (is_saved or trainer.is_validation_due(epoch)):
            self._read_all()
            trainer.validate()

    def _read_all(self) -> None:
        """Everything up to this step is known."""
        self._handle(self.trainer.flush_report())

    # Ends

    def _is_stop_due(self) -> bool:
        """One process decides alone, several have learned of it from the last report. The last step stops nobody."""
        is_alone = self.trainer.accelerator.num_processes == 1
        is_asked = self._is_stop_agreed or (is_alone and self.trainer.stop.is_asked)
        return is_asked and self.trainer.step < self.trainer.course.num_steps

    def _stop(self) -> None:
        trainer = self.trainer
        self._read_all()
        save = trainer.saves.of_step(trainer.step)
        trainer.save_model(save)
        self.is_saved = trainer.save_state(save)
        self.is_stopped = True

    def _go_back(self) -> None:
        """Begin again from the last saved state, with other noise, or give up."""
        trainer, limit = self.trainer, self.trainer.options.training.max_bad_steps
        self.num_bad = 0
        self._schedules.clear()
        if trainer.continuation.attempt < MAX_RETURNS and trainer.continuation.return_to_last_state():
            return
        raise DivergedError(
            f"the training has diverged: {limit} steps in a row up to step {self._last_bad} were not finite. "
            f"{self._kept()} Lower --learning_rate, or look at the pictures that are named above."
        )

    def _kept(self) -> str:
        saver, state = self.trainer.saver, self.trainer.continuation.last_state
        if state is not None:
            return f"The last good state is {state}."
        return f"The last file is {saver.folder / saver.files[-1].name}." if saver.files else "Nothing was saved."
