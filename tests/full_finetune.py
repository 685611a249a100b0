"""The smallest training of a whole denoiser: what the trainer has to do for it is the same as for adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from library.families.sd3.family import Sd3Family
from library.tensorfile import write_tensors
from library.training.trainer import Trainer


class WholeDenoiserTrainer(Trainer):
    """Trains every number of the denoiser."""

    def make_family(self) -> Any:
        return Sd3Family.from_options(self.options)

    def check_trainables(self) -> None:
        pass

    def trained_encoders(self) -> tuple[str, ...]:
        return ()

    def build_trainables(self) -> None:
        self.denoiser.requires_grad_(True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.denoiser.parameters())}]

    def trained_state(self) -> dict[str, Tensor]:
        return self.denoiser.state_dict()

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        self.denoiser.load_state_dict(state)

    def set_training(self, is_training: bool) -> None:
        self.denoiser.train(is_training)

    @contextmanager
    def unchanged_model(self) -> Iterator[None]:
        yield

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        write_tensors(path, self.trained_state())
        return [path]
