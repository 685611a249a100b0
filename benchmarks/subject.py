"""What `benchmarks.gpu_step` measures: models at some widths, each with the trainings and loops that it can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.gpu_rows import Training
from benchmarks.mmdit_subject import MmditSubject
from benchmarks.random_model import SIZES
from benchmarks.unet_sizes import TINY_UNETS, UNETS
from benchmarks.unet_subject import UnetSubject
from library.options.spec import ScriptText


class Subject(Protocol):
    """A model without files.

    Attributes:
        network_module: That trains a LoRA beside it.
        latent_channels: Of what it draws.
        depth: Number of blocks that can be swapped.
    """

    @property
    def network_module(self) -> str: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def depth(self) -> int: ...

    def script(self, *, is_network: bool) -> tuple[type[Any], ScriptText]:
        """The options of the script that trains it, and how they are read."""

    def family(self, options: Any) -> Any:
        """The family as the options ask for it."""

    def text_states(self, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random states of all encoders, as a cache gives them. On the CPU."""

    def flops(self, training: Training, side: int) -> int:
        """Of both passes with one square picture."""

    def other_step(
        self,
        training: Training,
        *,
        side: int,
        batch: int,
        device: torch.device,
        is_diffusers: bool,
        recomputes: bool,
    ) -> Callable[[], None]:
        """A step of another loop, over random latents and text states that lie on the device.

        Args:
            training: A LoRA.
            side: Of the pictures, in pixels.
            batch: Pictures.
            device: Where it runs.
            is_diffusers: Else the hand-written loop.
            recomputes: Gradient checkpointing.

        Raises:
            ImportError: A package that is needed is not installed.
        """


@dataclass(frozen=True)
class Subjects:
    """The models of a table.

    Attributes:
        models: By name.
        shrink: What sides of pictures are divided by.
    """

    models: Mapping[str, Subject]
    shrink: int = 1


def _subjects(widths: str) -> Subjects:
    sizes = SIZES[widths]
    unets = UNETS if widths == "true" else TINY_UNETS
    mmdits: dict[str, Subject] = {name: MmditSubject(config, sizes) for name, config in sizes.models.items()}
    return Subjects({**mmdits, **{name: UnetSubject(size) for name, size in unets.items()}}, sizes.shrink)


SUBJECTS = {widths: _subjects(widths) for widths in SIZES}
