"""What is saved after which step, under which names, and which older files go.

Model files are written first and states last, so that a state says: everything up to this step is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.names import (
    STATE,
    epoch_name,
    epoch_to_remove,
    last_name,
    side_path,
    step_name,
    step_to_remove,
)
from library.checkpoint.state_folder import MODEL_INDEX, glance, remove_folder
from library.errors import OutputError, UserError
from library.log import get_logger
from library.training.course import Course, epochs_between_saves
from library.training.saving.run_state import states_of
from library.training.sharding.leading import LostProcessError

if TYPE_CHECKING:
    from library.options.groups import SavingOptions

logger = get_logger(__name__)

AVERAGE = "-ema"  # behind the stem of a file with averaged weights
_FILE_ENDINGS = (".safetensors", ".ckpt", ".pt")  # other models are folders


@dataclass(frozen=True)
class Save:
    """One name under which something is saved.

    Attributes:
        model: Name of a file or, in the layout of diffusers, of a folder.
        state: Folder name.
        old_model: Name that it replaces, or None.
        old_state: Folder name, likewise.
    """

    model: str
    state: str
    old_model: str | None = None
    old_state: str | None = None


@dataclass(frozen=True)
class SavedFile:
    """A model that was written, a file or a folder.

    Attributes:
        name: In the output folder.
        step: Steps that were done.
    """

    name: str
    step: int


class SavePlan:
    """The names that a run saves under.

    Args:
        options: What to save and when.
        course: Of the run.
        extension: Of model files, with its dot; empty for folders.
        side_parts: What is saved in files of its own beside each model, by the names of text encoders.
        has_average: Averaged weights are saved beside each model.
    """

    def __init__(
        self,
        options: SavingOptions,
        course: Course,
        extension: str,
        *,
        side_parts: Sequence[str] = (),
        has_average: bool = False,
    ) -> None:
        self.options, self.course, self.extension = options, course, extension
        self.side_parts, self.has_average = tuple(side_parts), has_average
        epochs = course.steps.epochs
        self.every_n_epochs = epochs_between_saves(options.save_every_n_epochs, options.save_n_epoch_ratio, epochs)

    def due(self, step: int) -> list[Save]:
        """What is saved after a step; the end of the run is not among it."""
        due = []
        if self.course.is_save_due(step, self.options.save_every_n_steps):
            due.append(self.of_step(step))
        if (epoch := self.course.epoch_to_save(step, self.every_n_epochs)) is not None:
            due.append(self.of_epoch(epoch))
        return due

    def of_step(self, step: int) -> Save:
        """A save that is named after its step."""
        options, every = self.options, self.options.save_every_n_steps or 1
        keep = options.save_last_n_steps
        old = step_to_remove(step, every, keep)
        old_state = step_to_remove(step, every, options.save_last_n_steps_state or keep)
        return self._named(step_name, step, old, old_state)

    def of_epoch(self, epoch: int) -> Save:
        """A save that is named after its epoch."""
        options, every = self.options, self.every_n_epochs or 1
        keep = options.save_last_n_epochs
        old = epoch_to_remove(epoch, every, keep)
        old_state = epoch_to_remove(epoch, every, options.save_last_n_epochs_state or keep)
        return self._named(epoch_name, epoch, old, old_state)

    def _named(
        self, name_of: Callable[[str | None, str, int], str], number: int, old: int | None, old_state: int | None
    ) -> Save:
        """Of a step or an epoch, and of those that it replaces."""
        name = self.options.output_name
        return Save(
            name_of(name, self.extension, number),
            name_of(name, STATE, number),
            None if old is None else name_of(name, self.extension, old),
            None if old_state is None else name_of(name, STATE, old_state),
        )

    def of_end(self) -> Save:
        """The last save of a run."""
        name = self.options.output_name
        return Save(last_name(name, self.extension), last_name(name, STATE))

    def all_models(self) -> Iterator[str]:
        """Every model that the run will write with all that belongs to it, the last one first."""
        yield from self._with_what_belongs(self.of_end().model)
        for step in range(1, self.course.num_steps + 1):
            for save in self.due(step):
                yield from self._with_what_belongs(save.model)

    def _with_what_belongs(self, model: str) -> list[str]:
        names = self.names_of(model)
        return names if self.has_average else names[: len(names) // 2]

    def names_of(self, model: str) -> list[str]:
        """A model and its side files; then the same of its average, which there may be."""
        both = (Path(model), average_path(Path(model)))
        return [path.name for own in both for path in (own, *(side_path(own, part) for part in self.side_parts))]


class Saver:
    """Writes, on the main process; what goes wrong in between costs that file and not the training.

    Args:
        folder: For everything.
        plan: Names.
        write_model: (path, step, epochs done) writes the files of one model; returns their paths.
        write_state: Writes a state folder.
        upload: Is given everything that was written; None where nothing is uploaded.

    Attributes:
        files: What was saved, in order.
        spared: A state that stays, whatever its age: the run may go back to it.
        uploads_states: States are uploaded too.
    """

    def __init__(
        self,
        folder: Path,
        plan: SavePlan,
        write_model: Callable[[Path, int, int], Iterable[Path]],
        write_state: Callable[[Path], None],
        upload: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder, self.plan = folder, plan
        self._write_model, self._write_state, self._upload = write_model, write_state, upload
        self.files: list[SavedFile] = []
        self.spared: Path | None = None
        self.uploads_states = False

    def save_model(self, save: Save, step: int) -> None:
        """Write a model file.

        Raises:
            OutputError: It cannot be written; what was there before still is.
        """
        path = self.folder / save.model
        written = list(self._write_model(path, step, self.plan.course.epochs_done(step)))
        self.files = [file for file in self.files if file.name != save.model]
        self.files.append(SavedFile(save.model, step))
        logger.info("saved %s", ", ".join(str(file) for file in written))
        self._after(written)
        if save.old_model:
            self._remove_model(save.old_model)

    def try_to_save_model(self, save: Save, step: int) -> bool:
        """The same in between: a full disk is told and the training goes on. Whether it was saved.

        Raises:
            LostProcessError: The training cannot go on.
        """
        try:
            self.save_model(save, step)
        except LostProcessError:
            raise
        except UserError as error:
            logger.error("not saved, training goes on: %s", error)
            return False
        return True

    def try_to_save_state(self, save: Save) -> bool:
        """Write a state folder. Whether it was saved.

        Raises:
            LostProcessError: The training cannot go on.
        """
        path = self.folder / save.state
        try:
            self._write_state(path)
        except LostProcessError:
            raise
        except UserError as error:
            logger.error("state not saved, training goes on: %s", error)
            return False
        logger.info("saved %s", path)
        self._after([path], is_state=True)
        if save.old_state and save.old_state != save.state:
            self._remove_state(save.old_state)
        return True

    def tidy(self, step: int) -> None:
        """Remove what the saves after a step have replaced, where a kill came between the two."""
        for save in self.plan.due(step):
            if save.old_model:
                self._remove_model(save.old_model)
            if save.old_state:
                self._remove_state(save.old_state)

    def forget_states_after(self, step: int) -> None:
        """Remove the states of a way that the run has come back from. Their weights are those of the state before."""
        for path in states_of(self.folder, self.plan.options.output_name):
            if int((glance(path) or {}).get("current_step", 0)) > step:
                self._remove_state(path.name)

    def history(self) -> list[dict[str, Any]]:
        """What was saved, as JSON, for a state."""
        return [asdict(file) for file in self.files]

    def restore(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Take over what an earlier start of the run has saved."""
        self.files = [SavedFile(**entry) for entry in history]

    def _after(self, paths: Iterable[Path], is_state: bool = False) -> None:
        if self._upload is not None and (not is_state or self.uploads_states):
            for path in paths:
                self._upload(path)

    def _remove_model(self, name: str) -> None:
        for path in (self.folder / own for own in self.plan.names_of(name)):
            if (path / MODEL_INDEX).is_file():
                self._remove(path, partial(remove_folder, path))
            elif path.is_file():
                self._remove(path, path.unlink)

    def _remove_state(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir() and path != self.spared:
            self._remove(path, lambda: remove_folder(path))

    def _remove(self, path: Path, remove: Callable[[], None]) -> None:
        try:
            remove()
            logger.info("removed %s", path)
        except OSError as error:
            logger.warning("%s cannot be removed (%s)", path, error.strerror or error)


def average_path(path: Path) -> Path:
    """Where the averaged weights of a model go."""
    ending = path.suffix if path.suffix in _FILE_ENDINGS else ""
    return path.with_name(f"{path.name.removesuffix(ending)}{AVERAGE}{ending}")


def is_average(path: Path) -> bool:
    """Whether `average_path` made the path of a model."""
    return path.name.endswith((AVERAGE, *(f"{AVERAGE}{ending}" for ending in _FILE_ENDINGS)))


def refuse_non_finite(is_finite: bool, path: Path) -> None:
    """Raise OutputError where weights are not finite: such a file is of no use, and may replace one that is."""
    if not is_finite:
        raise OutputError(
            f"{path}: the trained weights are not finite, so they are not saved. Lower --learning_rate, and go on "
            "from an earlier file or state."
        )
