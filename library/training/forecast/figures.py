"""A forecast: what a run takes of the device, of the host and of the disk, phase by phase. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30


@dataclass(frozen=True)
class Phase:
    """A part of a run that has something in memory of its own.

    Attributes:
        name: For the table.
        device: Bytes on the device at most, what is assumed for its driver included. Where there is no device but the
            CPU, they are bytes of host memory.
        host: Bytes of host memory at most, beside the process itself.
        parts: What `device` is made of, {words: bytes}.
    """

    name: str
    device: int
    host: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """Bytes that are written.

    Attributes:
        one_save: A model file, and a state if states are saved.
        all_saves: All that are there at the same time.
    """

    one_save: int = 0
    all_saves: int = 0


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        phases: In their order.
        process: Bytes of host memory of the interpreter with its packages.
        workers: Bytes of host memory of the processes that read pictures, in all.
        is_on_cpu: The device is the host.
        batch: The batch that is counted, in words.
        num_cards: That share the weights.
        notes: What the figures leave out.
    """

    phases: tuple[Phase, ...]
    process: int
    workers: int
    is_on_cpu: bool
    batch: str
    num_cards: int = 1
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> Phase:
        """The phase that takes the most of the device."""
        return max(self.phases, key=lambda phase: phase.device)

    @property
    def host(self) -> int:
        """Bytes of host memory of this process at most; on the CPU with what would be the device's."""
        return self.process + max(phase.host + (phase.device if self.is_on_cpu else 0) for phase in self.phases)

    @property
    def training(self) -> Phase:
        """The phase of the steps."""
        return next(phase for phase in self.phases if phase.name == TRAINING)

    @property
    def sampling(self) -> Phase | None:
        """The phase of sample pictures."""
        return next((phase for phase in self.phases if phase.name == SAMPLES), None)


TRAINING, SAMPLES = "training", "samples"
