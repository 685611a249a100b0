"""Where a run stands. Everything follows from the number of optimizer steps that are done.

There is no other counter: epochs, batches to pass over after a resume and what falls due are computed from this one,
so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from library.data.plan.batches import StepCount


@dataclass(frozen=True)
class Course:
    """The steps of a run, counted from 1, and what falls due after each.

    Attributes:
        steps: The step arithmetic of the data.
    """

    steps: StepCount

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps.max_steps

    def epoch(self, step: int) -> int:
        """The epoch (counted from 1) that a step belongs to."""
        return (step - 1) // self.steps.steps_per_epoch + 1

    def num_batches(self, step: int) -> int:
        """Batches of one process in a step."""
        return self.steps.step_sizes[(step - 1) % self.steps.steps_per_epoch]

    def batches_done(self, step: int) -> int:
        """Batches of its epoch that one process has used when a step is done; 0 at the end of an epoch."""
        return sum(self.steps.step_sizes[: step % self.steps.steps_per_epoch])

    def ended_epoch(self, step: int) -> int | None:
        """The epoch that ends with a step; the last step ends one that is cut short, too."""
        if step % self.steps.steps_per_epoch == 0 or step == self.num_steps:
            return self.epoch(step)
        return None

    def epochs_done(self, step: int) -> int:
        """Whole epochs that are done after a step."""
        return step // self.steps.steps_per_epoch

    def is_save_due(self, step: int, every_n_steps: int | None) -> bool:
        """Whether a file is saved after a step because of its number."""
        return bool(every_n_steps) and step % (every_n_steps or 1) == 0

    def epoch_to_save(self, step: int, every_n_epochs: int | None) -> int | None:
        """The epoch whose file is saved after a step; the last epoch has the final file instead."""
        epoch = self.ended_epoch(step)
        is_due = epoch is not None and bool(every_n_epochs) and epoch % (every_n_epochs or 1) == 0
        return epoch if is_due and step < self.num_steps else None


def epochs_between_saves(every_n_epochs: int | None, ratio: int | None, num_epochs: int) -> int | None:
    """`--save_every_n_epochs`, or as many as make at least `ratio` files of a run (`--save_n_epoch_ratio`)."""
    return max(1, num_epochs // ratio) if ratio else every_n_epochs
