"""Several trainings that take their steps in turn, beside one frozen denoiser.

Each has its own adapters, optimizer, data and draws. While one makes a step, the adapters of the others are off the
layers, and the random state is its own, so that its numbers are those that it would have alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from library.errors import UserError
from library.log import get_logger
from library.training.stopping import StopRequest
from library.training.watching.progress import ProgressBar

if TYPE_CHECKING:
    from library.training.network_trainer import NetworkTrainer

logger = get_logger(__name__)


class RandomState:
    """The random numbers of torch, of its devices, of Python and numpy, as one training sees them."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which they go on from where they were at its last end."""
        before = _random_state()
        if self._state is not None:
            _set_random_state(self._state)
        try:
            yield
        finally:
            self._state = _random_state()
            _set_random_state(before)


def _random_state() -> tuple[Any, ...]:
    import torch

    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices, random.getstate(), np.random.get_state()


def _set_random_state(state: tuple[Any, ...]) -> None:
    import torch

    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    random.setstate(state[2])
    np.random.set_state(state[3])


@dataclass
class Turn:
    """One of the trainings.

    Attributes:
        name: Of its variation.
        trainer: Its options are not yet checked.
        code: How it ended; None as long as it goes on.
        problem: Why it could not go on; empty where it could.
    """

    name: str
    trainer: NetworkTrainer
    code: int | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        self.random = RandomState()
        self._steps: Iterator[None] | None = None

    @property
    def steps_left(self) -> int:
        """Optimizer steps that it will make, as far as is known."""
        return self.trainer.course.num_steps - self.trainer.step if self.code is None else 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which its adapters are on the layers and the random numbers are its own."""
        network = getattr(self.trainer, "network", None)
        with self.random.active():
            for adapter in network.adapters() if network is not None else ():
                adapter.attach()
            try:
                yield
            finally:
                if (network := getattr(self.trainer, "network", None)) is not None:
                    network.detach_all()

    def prepare(self) -> None:
        """Everything before the first step."""
        with self.active():
            self.code = self.trainer.prepare()
        if self.code is None:
            self.trainer.watch.shows_bar = False  # there is one for all
            self._steps = self.trainer.steps()

    def step(self) -> None:
        """Make a step; after the last one, write the final file."""
        assert self._steps is not None
        with self.active():
            try:
                next(self._steps)
            except StopIteration:
                self.code = self.trainer.finish()


class SharedStop(StopRequest):
    """Listens to signals for all of them: whatever one of them does, the others have something to save.

    Attributes:
        is_going: Steps are made.
    """

    is_going = False

    def __enter__(self) -> SharedStop:
        super().__enter__()
        return self

    @property
    def is_training(self) -> bool:  # type: ignore[override]
        """Whether there is something to save."""
        return self.is_going

    @is_training.setter
    def is_training(self, value: bool) -> None:
        """A training that ends does not speak for the others."""


def train_in_turn(turns: Sequence[Turn], on_end: Callable[[Turn], None]) -> bool:
    """Train all of them.

    Args:
        turns: In their order.
        on_end: Called for each as soon as it has ended.

    Returns:
        Whether all have come to their ends, or have failed; False where a stop was asked for.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(SharedStop())
        for turn in turns:
            turn.trainer.stop = stop  # a signal stops all of them
            stack.enter_context(turn.trainer.continuation)
            _let_act(turn, turn.prepare, on_end)
        stop.is_going = True
        left = sum(turn.steps_left for turn in turns)
        with ProgressBar(left) as bar:
            while going := [turn for turn in turns if turn.code is None]:
                for turn in going:
                    before = turn.steps_left
                    _let_act(turn, turn.step, on_end)
                    bar.update(before - turn.steps_left)
        return not stop.is_asked


def _let_act(turn: Turn, act: Callable[[], None], on_end: Callable[[Turn], None]) -> None:
    """Do something that may fail for this training alone."""
    try:
        act()
    except UserError as error:
        turn.code, turn.problem = error.exit_code, str(error)
        logger.error("%s cannot go on, the others do: %s", turn.name, error)
    if turn.code is not None:
        on_end(turn)
