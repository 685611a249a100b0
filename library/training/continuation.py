"""Going on with a run: whose the output folder is, which state is meant, whether it fits, and putting it back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.state_folder import glance, open_folder, remove_folder
from library.errors import CheckpointError, OptionError, OutputError, UserError
from library.log import get_logger
from library.records import Size
from library.training.saving.claim import OutputClaim, files_of_another_run
from library.training.saving.run_identity import LENGTH, differences, identity_mark, run_identity
from library.training.saving.run_state import (
    AUTO,
    RunState,
    check_resume,
    find_state,
    read_progress,
    read_state,
    states_of,
    write_state,
)

if TYPE_CHECKING:
    from torch import Tensor

    from library.training.built_training import BuiltTraining
    from library.training.saving.hub_state import StateReference

logger = get_logger(__name__)


class Continuation:
    """The part of a trainer that knows about earlier and later starts of its run. A context that holds the claim.

    Attributes:
        folder: The state that the run goes on from; None for a fresh start.
        first_step: Steps that were done when this start of the run began.
        last_state: The newest state whose weights gave finite numbers.
        attempt: How often the run has gone back to a state.
        session: What saved files say of this run and of no other; kept over resumes.
    """

    def __init__(self, trainer: BuiltTraining) -> None:
        self.trainer = trainer
        self.folder: Path | None = None
        self.first_step = 0
        self.attempt = 0
        self.session: Mapping[str, Any] | None = None
        self._claim: OutputClaim | None = None
        self._reference: StateReference | None = None
        self._progress: Mapping[str, Any] = {}
        self._identity: Future[dict[str, Any]] | None = None
        self.last_state: Path | None = None
        self._is_remembered = False

    def __enter__(self) -> Continuation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    # Before weights are read

    def check_options(self) -> None:
        """Claim the output folder, and see whether `--resume` names something.

        Raises:
            OptionError: The folder is in use, the state is missing, or options contradict each other.
            OutputError: The folder cannot be written.
        """
        trainer, saving, begin = self.trainer, self.trainer.options.saving, self.trainer.options.training
        if saving.resume is not None and (begin.initial_step is not None or begin.initial_epoch is not None):
            raise OptionError(
                "--resume says where to begin, and so do --initial_step and --initial_epoch. Keep one of them."
            )
        if trainer.options.hub.resume_from_huggingface:
            self._check_reference(saving.resume)
        else:
            check_resume(saving.resume)
        is_looking = trainer.options.data.dry_run or trainer.options.data.debug_dataset
        if _is_first_process() and not is_looking:
            self._claim = OutputClaim(trainer.folder)
            try:
                self._claim.take()
            except OSError as error:
                raise OutputError(
                    f"--output_dir: {trainer.folder} cannot be written ({error.strerror or error}). "
                    "Choose another folder."
                ) from None

    def _check_reference(self, resume: str | None) -> None:
        from library.training.saving.hub_state import read_state_reference

        if resume is None:
            raise OptionError(
                "--resume_from_huggingface needs --resume to name a state: owner/repo/path[:revision[:type]]."
            )
        self._reference = read_state_reference(resume)

    def check_files(self) -> None:
        """Refuse to overwrite what another run has made; begin to look at what this run trains.

        Raises:
            OptionError: Files of another run have the names that this one will write.
        """
        trainer, saving = self.trainer, self.trainer.options.saving
        threads = ThreadPoolExecutor(1, thread_name_prefix="identity")
        self._identity = threads.submit(run_identity, trainer.options, trainer.plan, seed=trainer.options.training.seed)
        threads.shutdown(wait=False)
        if self._claim is None:
            return
        names = [name for name in trainer.saves.all_models() if (trainer.folder / name).exists()]
        names += [path.name for path in states_of(trainer.folder, saving.output_name)]
        if saving.overwrite or saving.resume not in (None, AUTO) or not names:
            return
        files_of_another_run(
            trainer.folder,
            names,
            is_same_run=saving.resume == AUTO and self._is_own(identity_mark(self._identity.result())),
            is_resumed=saving.resume == AUTO and self._has_state(),
        )

    def _is_own(self, mark: str) -> bool:
        """Whether what lies under the output name is of an earlier start of this very run."""
        return self._claim is not None and self._claim.run_of(self.trainer.options.saving.output_name) == mark

    def _has_state(self) -> bool:
        return find_state(AUTO, self.trainer.folder, self.trainer.options.saving.output_name) is not None

    def find(self) -> None:
        """Choose the state to go on from, the same on every process, and take over its seed.

        Raises:
            CheckpointError: It is incomplete or damaged.
        """
        trainer, resume = self.trainer, self.trainer.options.saving.resume
        if resume is None:
            return
        self.folder = self.last_state = _agreed(trainer, self._choose)
        if self.folder is None:
            logger.info("--resume auto: there is no complete state in %s; the run begins anew.", trainer.folder)
            return
        self._progress = read_progress(self.folder)
        self.session = self._progress.get("session")
        if trainer.options.training.seed is None:
            trainer.set_seed(int(self._progress["seed"]))

    def _choose(self) -> Path | None:
        options = self.trainer.options
        if options.hub.resume_from_huggingface:
            from library.training.saving.hub_state import download_state

            assert self._reference is not None  # read with the options
            place = self.trainer.folder / "from_hub"
            folder = download_state(self._reference, options.hub.huggingface_token, place)
            state = find_state(str(folder), place, None)
        else:
            state = find_state(str(options.saving.resume), self.trainer.folder, options.saving.output_name)
        return None if state is None else state.path

    def is_finished(self) -> bool:
        """Whether nothing is left to do: the state is of the end, and what is written at the end is there.

        Raises:
            OptionError: The state that was named has all the steps already.
        """
        trainer = self.trainer
        if self.folder is None or int(self._progress["current_step"]) < trainer.course.num_steps:
            return False
        end = trainer.folder / trainer.saves.of_end().model
        if trainer.options.saving.resume != AUTO:
            raise OptionError(
                f"--resume: {self.folder} has all {trainer.course.num_steps} steps already. Give more "
                "--max_train_steps or --max_train_epochs."
            )
        saving, state = trainer.options.saving, trainer.folder / trainer.saves.of_end().state
        wants_state = saving.save_state or saving.save_state_on_train_end
        if not end.exists() or (wants_state and glance(state) is None):
            return False
        logger.info("--resume auto: the run is complete, %s is there; nothing is left to do.", end)
        return True

    def look_anew(self) -> None:
        """Pictures that turned out to be damaged are left out by now."""
        trainer = self.trainer
        self._identity = Future()
        self._identity.set_result(run_identity(trainer.options, trainer.plan, seed=trainer.options.training.seed))

    def compare(self) -> None:
        """Refuse to go on with something else than the state was made with.

        Raises:
            OptionError: With every difference.
        """
        if self.folder is None or self._identity is None:
            return
        before, now = self._progress["identity"], self._identity.result()
        length, new_length = (int(identity["run"][LENGTH]) for identity in (before, now))
        reason = self._why_length_matters(length, new_length)
        if length != new_length and not reason:
            logger.info("the run has %d steps now and had %d; what is done is the same for both.", new_length, length)
            before = {**before, "run": {**before["run"], LENGTH: new_length}}
        changes = [
            f"{change} ({reason})" if change.startswith(f"{LENGTH}: ") else change
            for change in differences(before, now)
        ]
        if not changes:
            return
        listed = "".join(f"\n  {change}" for change in changes)
        if not self.trainer.options.saving.allow_changed:
            raise OptionError(
                f"--resume: {self.folder} was made with other options or data. Put them back, or go on all the same "
                f"with --allow_changed:{listed}"
            )
        logger.warning("--allow_changed: the run goes on with what has changed:%s", listed)

    def _why_length_matters(self, before: int, now: int) -> str:
        """Why the steps that are done would be others in a run of another length; empty where they would not."""
        from library.training.optimization.schedules import has_same_start

        trainer, done = self.trainer, int(self._progress["current_step"])
        subsets = [subset for spec in trainer.plan.specs for subset in spec.subsets]
        if any(0 < subset.captions.token_warmup_step < 1 for subset in subsets):
            return "token_warmup_step is a share of them, so captions would have been others until here"
        options = trainer.options.optimizer
        if not has_same_start(options, done, before=before, now=now):
            name = f"--lr_scheduler_type {options.lr_scheduler_type}"
            name = name if options.lr_scheduler_type else f"--lr_scheduler {options.lr_scheduler}"
            return f"{name} follows them, so learning rates may have been others until here"
        return ""

    # While training

    def remember(self) -> None:
        """From the first file on, the output name is this run's."""
        if self._claim is not None and self._identity is not None and not self._is_remembered:
            self._is_remembered = True
            self._claim.remember(self.trainer.options.saving.output_name, identity_mark(self._identity.result()))

    def begin(self) -> None:
        """The first step comes: the output name is this run's, and with `--overwrite` no state of another is left."""
        trainer, saving = self.trainer, self.trainer.options.saving
        if not trainer.accelerator.is_main_process:
            return
        self.remember()
        if saving.overwrite and self.folder is None:
            for state in states_of(trainer.folder, saving.output_name):
                remove_folder(state)
                logger.info("--overwrite: removed %s", state)

    def write(self, path: Path) -> None:
        """Write the state of the run as it is now.

        Raises:
            OutputError: It cannot be written.
            EnvironmentFault: There is no memory to write it.
        """
        from library.training.optimization.schedule_state import schedule_state

        trainer, shards = self.trainer, self.trainer.shards
        with trainer.memory_for(path):
            training = {"optimizer": shards.optimizer_state(), "schedule": schedule_state(trainer.schedule)}
            if trainer.accelerator.scaler is not None:
                training["scaler"] = trainer.accelerator.scaler.state_dict()
            weights = shards.whole(trainer.trained_state())
            write_state(path, RunState(weights, shards.average_state(), training, self._describe()))
        if not trainer.loop.num_bad:  # else its weights are those that gave numbers that are not finite
            self.last_state = trainer.saver.spared = path

    def _describe(self) -> dict[str, Any]:
        trainer = self.trainer
        assert self._identity is not None
        identity = self._identity.result()
        return {
            "current_epoch": trainer.course.epochs_done(trainer.step),
            "current_step": trainer.step,
            "seed": trainer.seed,
            "attempt": self.attempt,
            "session": trainer.session(),
            "losses": trainer.log.losses,
            "num_skipped": trainer.loop.num_skipped,
            "num_parts": [[*size, number, parts] for (size, number), parts in trainer.make_step.num_parts.items()],
            "watch": trainer.watch.state(),
            "saved": trainer.saver.history(),
            "identity": {**identity, "run": {**identity["run"], "seed": trainer.seed}},
        }

    # Putting a state back

    def restore(self) -> None:
        """Go on from the state that was found, or from the step that options name.

        Raises:
            CheckpointError: The state does not fit.
        """
        if self.folder is not None:
            self._put_back(self.folder)
            self.first_step = self.trainer.step
            self.trainer.saver.spared = self.folder
            if self._claim is not None:
                self.trainer.saver.tidy(self.first_step)
            logger.info("continuing from %s: %d of %d steps are done.", self.folder, self.trainer.step, self._num_steps)
            return
        begin = self.trainer.options.training
        step = begin.initial_step or 0
        if begin.initial_epoch is not None:
            step = (begin.initial_epoch - 1) * self.trainer.plan.steps.steps_per_epoch
        if step >= self._num_steps:
            raise OptionError(
                f"--initial_step or --initial_epoch: the run has {self._num_steps} steps, so none is left. Give less."
            )
        if step:
            self._begin_at(step)

    @property
    def _num_steps(self) -> int:
        return self.trainer.course.num_steps

    def _begin_at(self, step: int) -> None:
        from library.training.optimization.schedule_state import advance

        trainer = self.trainer
        trainer.step = self.first_step = step
        trainer.log.losses = [float("nan")] * step
        advance(trainer.schedule, step)
        logger.info("beginning after step %d, in epoch %d.", step, trainer.course.epoch(step + 1))

    def _put_back(self, folder: Path) -> None:
        from library.training.optimization.optimizer_state import load_optimizer_state
        from library.training.optimization.schedule_state import load_schedule_state

        trainer, shards = self.trainer, self.trainer.shards
        state = read_state(folder, mmap=shards.is_sharded)
        try:
            _check_shapes(trainer.trained_state(), state.weights, folder)
            trainer.load_trained_state(state.weights)
            with shards.receiving_state():
                load_optimizer_state(trainer.optimizer, shards.own_optimizer_state(state.training["optimizer"]))
            num_steps = int(state.progress["current_step"])
            load_schedule_state(trainer.schedule, state.training["schedule"], num_steps=num_steps)
            if trainer.accelerator.scaler is not None and "scaler" in state.training:
                trainer.accelerator.scaler.load_state_dict(state.training["scaler"])
            if trainer.ema is not None and state.ema is None:
                logger.warning("%s has no averaged weights; the average begins with the weights as they are.", folder)
                trainer.ema.restart()
            elif trainer.ema is not None and state.ema is not None:
                trainer.ema.load_state(shards.own_average_state(state.ema))
            self._put_back_progress(state.progress)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"--resume: {folder} does not fit this run ({reason}). Give the options that it was made with."
            ) from error

    def _put_back_progress(self, progress: Mapping[str, Any]) -> None:
        trainer = self.trainer
        trainer.step = int(progress["current_step"])
        trainer.log.losses = [float(loss) for loss in progress["losses"]]
        trainer.loop.num_skipped = int(progress["num_skipped"])
        trainer.make_step.num_parts = {
            (Size(width, height), number): parts for width, height, number, parts in progress["num_parts"]
        }
        trainer.saver.restore(progress["saved"])
        trainer.watch.load_state(progress["watch"])
        self.attempt = int(progress["attempt"])
        if self.attempt:
            trainer.draw_other_noise(self.attempt)

    def return_to_last_state(self) -> bool:
        """Go back to the newest good state with other noise; False where there is none."""
        trainer = self.trainer
        try:
            folder = _agreed(trainer, lambda: self.last_state and open_folder(self.last_state).path)
        except CheckpointError as error:
            logger.error("the last state cannot be used: %s", error)
            return False
        if folder is None:
            return False
        before, attempt, skipped = trainer.step, self.attempt + 1, trainer.loop.num_skipped
        files = trainer.saver.history()
        trainer.log.discard()
        trainer.watch.back_to(int(read_progress(folder)["current_step"]))
        self._put_back(folder)
        trainer.saver.restore(files)
        trainer.loop.num_skipped = skipped
        self.attempt = attempt
        trainer.draw_other_noise(attempt)
        if trainer.sampler is not None:
            trainer.sampler.sheet.back_to(trainer.step)
        if trainer.accelerator.is_main_process:
            trainer.saver.forget_states_after(trainer.step)
        logger.warning(
            "steps up to %d were not finite: going back to %s (step %d), with other noise from there on.",
            before,
            folder,
            trainer.step,
        )
        return True


def _check_shapes(here: Mapping[str, Tensor], there: Mapping[str, Tensor], folder: Path) -> None:
    """Raise CheckpointError, with an example, where a state is of other weights than those that train."""
    for name in dict.fromkeys((*here, *there)):
        own, other = (str(tuple(w[name].shape)) if name in w else "nothing" for w in (here, there))
        if own != other:
            raise CheckpointError(
                f"--resume: {folder} does not fit this run: {name} has the shape {own} here and {other} in the state. "
                "Give the options that it was made with: what trains, and of which size."
            )


def _agreed(trainer: BuiltTraining, choose: Any) -> Path | None:
    """What the main process chooses, or the error that it ends with, on every process."""
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]
    if trainer.accelerator.is_main_process:
        try:
            told = [choose(), None]
        except (UserError, OSError) as error:
            told = [None, error]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    path: Path | None = told[0]
    return path


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0") or 0) == 0
