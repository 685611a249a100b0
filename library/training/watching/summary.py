"""What a run says at its end: how far it came, how well, what it wrote, and what to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from library.data.problems import counted, first_names
from library.training.watching.loss_records import HardPicture


class SavedFile(NamedTuple):
    """A model file that is still there, and the optimizer steps that were done when it was saved."""

    path: Path
    step: int


class WrittenFile(NamedTuple):
    """Something else that was written, for instance ("curves", path)."""

    what: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The facts of a run that has ended.

    Attributes:
        steps: Optimizer steps done, those before a resume among them.
        max_steps: Steps that were planned.
        epochs: Whole epochs done.
        max_epochs: Epochs that were planned.
        seconds: Time of this run.
        first_step: Step that this run went on from; 0 for a run from the start.
        mean_loss: Of the last steps of training.
        averaged_steps: How many these are: an epoch, if it is not cut short or very long.
        is_epoch_cut: The run has ended within an epoch.
        skipped_steps: Steps whose loss or gradient was no finite number.
        saved: In the order of saving.
        validation: (step, loss) of each validation.
        hardest: Pictures with the highest relative loss, hardest first.
        uploads: Lines about copies on the hub.
        sample_problems: Lines about sample pictures that could not be drawn.
        written: Curves, contact sheet, table of losses.
        peak_memory: In words; empty where it is not known.
    """

    steps: int
    max_steps: int
    epochs: int
    max_epochs: int
    seconds: float
    first_step: int = 0
    mean_loss: float | None = None
    averaged_steps: int = 0
    is_epoch_cut: bool = False
    skipped_steps: int = 0
    saved: Sequence[SavedFile] = ()
    validation: Sequence[tuple[int, float]] = ()
    hardest: Sequence[HardPicture] = ()
    uploads: Sequence[str] = ()
    sample_problems: Sequence[str] = ()
    written: Sequence[WrittenFile] = ()
    peak_memory: str = ""


class BestSave(NamedTuple):
    """The saved file with the lowest validation loss; the validation at or nearest to its step."""

    file: SavedFile
    step: int
    loss: float


def summary_lines(run: RunSummary) -> list[str]:
    """The closing lines of a run, the files last but for memory."""
    return [
        _progress(run),
        *_losses(run),
        *_hardest(run.hardest),
        *run.sample_problems,
        *run.uploads,
        *_files(run),
        *([f"most memory in use: {run.peak_memory}"] if run.peak_memory else []),
    ]


def best_save(saved: Sequence[SavedFile], validation: Sequence[tuple[int, float]]) -> BestSave | None:
    """The file to try first: each file is judged by the validation nearest to its step; the first of equals wins.

    None without a file or a validation.
    """
    if not saved or not validation:
        return None
    judged = []
    for file in saved:
        step, loss = min(validation, key=lambda point: (abs(point[0] - file.step), point[0]))
        judged.append(BestSave(file, step, loss))
    return min(judged, key=lambda item: (item.loss, abs(item.file.step - item.step)))


def duration(seconds: float) -> str:
    """For instance "42 s", "3 min 5 s", "2 h 7 min"."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _progress(run: RunSummary) -> str:
    is_complete = run.steps >= run.max_steps
    steps, epochs = _share(run.steps, run.max_steps, "step"), _share(run.epochs, run.max_epochs, "epoch")
    since = f" since step {run.first_step}" if run.first_step else ""
    done = run.steps - run.first_step
    speed = f" ({run.seconds / done:.2f} s a step)" if done > 0 else ""
    return f"{'done' if is_complete else 'stopped'}: {steps}, {epochs}, {duration(run.seconds)}{since}{speed}"


def _share(number: int, planned: int, noun: str) -> str:
    return counted(number, noun) if number >= planned else f"{number:,} of {counted(planned, noun)}"


def _losses(run: RunSummary) -> Iterator[str]:
    if run.mean_loss is not None and run.is_epoch_cut:
        steps = counted(run.averaged_steps, "step")
        yield f"mean loss of the last {steps}, as the last epoch was cut short: {run.mean_loss:.4f}"
    elif run.mean_loss is not None:
        yield f"mean loss of the last epoch: {run.mean_loss:.4f}"
    if run.skipped_steps:
        yield f"skipped steps, whose loss or gradient was not finite: {run.skipped_steps}"
    best = best_save(run.saved, run.validation)
    if best is None:
        return
    if best.step == best.file.step:
        yield f"lowest validation loss {best.loss:.4f} at step {best.step}: {best.file.path}"
    else:
        yield (
            f"lowest validation loss near a saved file {best.loss:.4f} at step {best.step}: {best.file.path} "
            f"(step {best.file.step})"
        )
    step, loss = min(run.validation, key=lambda point: (point[1], point[0]))
    if loss < best.loss:
        yield f"validation was lower at step {step}, {loss:.4f}, where nothing was saved or is left"


def _hardest(pictures: Sequence[HardPicture]) -> Iterator[str]:
    if pictures:
        words = ", ".join(f"{item.picture} ({item.relative_loss:.2f})" for item in pictures)
        yield f"hardest pictures, by loss against the mean of the same timesteps: {words}"


def _files(run: RunSummary) -> Iterator[str]:
    for item in run.written:
        yield f"{item.what}: {item.path}"
    if len(run.saved) > 1:
        earlier = [file.path.name for file in run.saved[:-1]]
        yield f"saved before it: {counted(len(earlier), 'file')} ({first_names(earlier)})"
    yield f"saved: {run.saved[-1].path}" if run.saved else "nothing was saved"
