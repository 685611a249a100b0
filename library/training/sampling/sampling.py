"""Sample pictures while training: when, and what happens to all prompts of a run.

Pictures of a step are drawn before the model is saved at that step, those of an epoch after the model of that epoch is
saved. Drawing has no effect on the training: it changes no random state, and whatever goes wrong in it costs a picture
and not the run.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from library.data.problems import counted
from library.device import release_unused_memory
from library.errors import OutputError, UserError
from library.families.base import ModelFamily
from library.log import get_logger
from library.tensorfile import write_atomically
from library.training.checks import check_picture_sizes
from library.training.sampling.contact_sheet import Column, ContactSheet
from library.training.sampling.prompt_lines import shortened
from library.training.sampling.prompts import PromptFile, SamplePrompt
from library.training.sampling.sample_drawing import draw_latents, sample_name, to_picture

if TYPE_CHECKING:
    from torch import nn

    from library.training.encoding.encoders import Encoders

logger = get_logger(__name__)

MAX_FAILED_EVENTS = 3  # in a row, without a single picture

T = TypeVar("T")


def is_sample_due(step: int, epoch_end: int | None, every_n_steps: int | None, every_n_epochs: int | None) -> bool:
    """Whether samples are drawn now. `epoch_end` is the epoch that just ended, else None; epochs override steps."""
    if every_n_epochs:
        return epoch_end is not None and epoch_end % every_n_epochs == 0
    return epoch_end is None and bool(every_n_steps) and step % (every_n_steps or 1) == 0


class StopAsked(Exception):
    """The run is to end soon, so the picture is not finished."""


class SamplePictures:
    """Draws the prompts of a file into a folder, each time that `draw` is called, and keeps a contact sheet of them.

    Args:
        prompts: Their file, which may be edited while the training runs.
        family: Of the denoiser.
        encoders: Loaded; give the text states and the VAE.
        denoiser: What is trained.
        device: Of the denoiser.
        autocast: The context that the denoiser runs in.
        folder: Made when it is needed.
        output_name: Begins the names of all files.
        first_step: Optimizer steps that were done before this start, see `ContactSheet`.
        is_stopping: Asked after each sampling step; True leaves the event unfinished.
        tell: Given each prompt before it is drawn, to tell a network its conditioning picture.

    Attributes:
        is_off: Nothing is drawn any more, because nothing could be drawn several times.
        num_drawn: Pictures so far.
        num_failed: Pictures that could not be drawn.
        last_drawn: The pictures of the last event with their prompts.
    """

    def __init__(
        self,
        prompts: PromptFile,
        *,
        family: ModelFamily,
        encoders: Encoders,
        denoiser: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]],
        folder: Path,
        output_name: str | None,
        first_step: int | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
        tell: Callable[[SamplePrompt], None] = lambda prompt: None,
    ) -> None:
        self.tell = tell
        self.file, self.family, self.encoders, self.denoiser = prompts, family, encoders, denoiser
        self.device, self.autocast, self.is_stopping = device, autocast, is_stopping
        self.folder, self.output_name = folder, output_name
        self.sheet = ContactSheet(folder, output_name, first_step)
        self.is_off = False
        self.num_drawn = self.num_failed = 0
        self.last_drawn: tuple[tuple[SamplePrompt, Path], ...] = ()
        self._failed_events = 0
        self._last_problem = ""

    def draw(self, *, step: int, epoch_end: int | None) -> tuple[Path, ...]:
        """Draw every prompt with the weights as they are now. For the main process, in evaluation mode.

        Args:
            step: Optimizer steps so far.
            epoch_end: The epoch that just ended, else None; 0 before the first step.

        Returns:
            The files that were written. What goes wrong is told and never raised.
        """
        if self.is_off:
            return ()
        with unchanged_random_state(self.device):
            self._attempt(self._reread, "the prompts stay as they are")
            prompts = self.file.prompts
            drawn = self._draw_prompts(prompts, step, epoch_end) if self._attempt(self._make_folder, "") else {}
            self._attempt(self.encoders.park_vae, "the VAE cannot be moved")
            if drawn:
                column = Column(step, -1 if epoch_end is None else epoch_end)
                self._attempt(partial(self.sheet.add, column, prompts, drawn), "no contact sheet")
        self.last_drawn = tuple((prompts[number], path) for number, path in drawn.items())
        self._count(drawn, num_asked=len(prompts))
        return tuple(drawn.values())

    def summary(self) -> tuple[str, ...]:
        """Lines for the end of the run."""
        lines = []
        if self.num_drawn:
            lines.append(f"sample pictures: {self.num_drawn} in {self.folder}, all at one look: {self.sheet.path}")
        if self._last_problem:
            failed = f"{self.num_failed} could not be drawn; " if self.num_failed else ""
            lines.append(f"sample pictures: {failed}last problem: {self._last_problem}")
        return tuple(lines)

    def _reread(self) -> None:
        longest = self.family.longest_side(self.encoders.files)
        if self.file.reread(lambda prompts: check_picture_sizes(longest, (), prompts, "")):
            number = counted(len(self.file.prompts), "prompt")
            logger.info("%s has changed: from now on %s.", self.file.path, number)

    def _make_folder(self) -> bool:
        """Make the folder and see whether a file can be written, before anything is computed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written ({error.strerror or error})") from None
        return True

    def _draw_prompts(self, prompts: Sequence[SamplePrompt], step: int, epoch_end: int | None) -> dict[int, Path]:
        """{number in `prompts`: file} of all that can be drawn."""
        texts = [text for prompt in prompts for text in prompt.texts]
        self._attempt(partial(self.encoders.encode_prompts, texts), "new prompts cannot be encoded")
        drawn = {}
        for number, prompt in enumerate(prompts):
            if self.is_stopping():
                break
            if self.encoders.unknown_prompts(prompt.texts):
                continue  # told above
            title = f'prompt {number + 1} ("{shortened(prompt.prompt, 40)}") is not drawn'
            path = self._attempt(partial(self._draw_one, prompt, step, epoch_end), title)
            if path is not None:
                drawn[number] = path
        return drawn

    def _draw_one(self, prompt: SamplePrompt, step: int, epoch_end: int | None) -> Path:
        self.tell(prompt)
        with self.autocast():
            latents = draw_latents(
                prompt, self.family, self.denoiser, self.encoders.text, self.device, on_step=self._on_step
            )
        vae = self.encoders.vae()
        with torch.no_grad():
            picture = to_picture(self.family.decode_latents(vae, latents.to(next(vae.parameters()).dtype)))
        path = self.folder / sample_name(self.output_name, prompt.index, prompt.seed, step=step, epoch_end=epoch_end)
        write_atomically(path, lambda place: picture.save(place, format="PNG"))
        return path

    def _on_step(self, done: int, num_steps: int) -> None:
        if done < num_steps and self.is_stopping():
            raise StopAsked

    def _attempt(self, act: Callable[[], T], what: str) -> T | None:
        """What `act` returns, or None: whatever goes wrong is told and ends only this, for a picture is no reason to
        lose a training."""
        try:
            return act()
        except StopAsked:
            return None
        except Exception as error:
            logger.debug("sample pictures: %s", what, exc_info=True)
            problem = ": ".join(part for part in (what, reason_of(error)) if part)
        release_unused_memory(self.device)  # after the handler, whose traceback holds tensors
        logger.error("sample pictures: %s. Training goes on.", problem)
        self._last_problem = problem
        return None

    def _count(self, drawn: Mapping[int, Path], num_asked: int) -> None:
        self.num_drawn += len(drawn)
        if drawn:
            logger.info("sample pictures: %s", ", ".join(str(path) for path in drawn.values()))
        if self.is_stopping():
            return
        self.num_failed += num_asked - len(drawn)
        self._failed_events = 0 if drawn else self._failed_events + 1
        if self._failed_events == MAX_FAILED_EVENTS:
            self.is_off = True
            logger.error(
                "sample pictures are switched off: nothing could be drawn %d times in a row. Training goes on.",
                MAX_FAILED_EVENTS,
            )


def reason_of(error: Exception) -> str:
    """What went wrong, in one line without full stop."""
    if isinstance(error, UserError):
        return str(error).removesuffix(".")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "there is not enough memory; smaller --w and --h in the prompt need less"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {shortened(lines[0], 200)}".removesuffix(": ").removesuffix(".")


@contextmanager
def unchanged_random_state(device: torch.device) -> Iterator[None]:
    """Leave the random numbers of torch, of the device, of Python and numpy as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    has_own = device.type in ("cuda", "xpu")
    kind = device.type if has_own else "cuda"
    try:
        with torch.random.fork_rng([device] if has_own else [], device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
