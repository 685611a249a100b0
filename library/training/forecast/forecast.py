"""The forecast of a run, from headers and options: no weight is read, and it takes seconds."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from library.device import choose_device
from library.training.forecast.counts import Counts, Passed
from library.training.forecast.device_memory import DeviceMemory
from library.training.forecast.figures import SAMPLES, TRAINING, Forecast, Phase
from library.training.forecast.host_memory import HostMemory, process_bytes, worker_bytes
from library.training.looking.look import bytes_in_memory
from library.training.processes import num_processes

if TYPE_CHECKING:
    import torch

    from library.training.trainer import Trainer

_COMPILED = "compiled blocks are taken to need as much as others, and mostly need less; the compiler is not counted"


class Forecaster:
    """Makes forecasts of a run for its own options and for others that might be chosen.

    Args:
        trainer: Its data is planned and its files are inspected. It is only asked.
        device: Where the denoiser will be, which need not be there; None for the one of this machine.
    """

    def __init__(self, trainer: Trainer, device: torch.device | None = None) -> None:
        self.trainer, self.device = trainer, device or choose_device()
        self._counts: dict[Any, Counts] = {}
        self._passed = Passed()
        self._caches: dict[Any, int] = {}

    def of(self, options: Any) -> Forecast:
        """The forecast with these options."""
        counts, sharding = self.counts(options), self.trainer.sharding
        is_sharded = sharding is not None
        offloads = sharding is not None and sharding.offloads
        memory = DeviceMemory(counts, options, num_processes(), is_sharded, offloads)
        host = HostMemory(counts, options, self._cache_bytes(options))
        phases = tuple(_with_host(phase, host, memory) for phase in memory.phases())
        return Forecast(
            phases,
            process_bytes(),
            worker_bytes(options),
            memory.is_on_cpu,
            counts.batch.words,
            num_cards=num_processes() if is_sharded else 1,
            notes=(*([counts.note] if counts.note else []), *([_COMPILED] if options.compute.torch_compile else [])),
        )

    def counts(self, options: Any) -> Counts:
        """What the models take with these options."""
        sketch = self.trainer_with(options)
        family = sketch.family
        key = options.memory.weights_format, *(str(family.encoder_device(n, self.device)) for n in family.encoder_names)
        if key not in self._counts:
            self._counts[key] = Counts(sketch, self.device, self._passed)
        return self._counts[key]

    def _cache_bytes(self, options: Any) -> int:
        """Of the caches that are kept in memory only."""
        key = options.cache
        if key not in self._caches:
            sketch = self.trainer_with(options)
            self._caches[key] = bytes_in_memory(sketch, trained=sketch.trained_encoders())
        return self._caches[key]

    def trainer_with(self, options: Any) -> Trainer:
        """A copy of the trainer that has these options, to be asked."""
        if options is self.trainer.options:
            return self.trainer
        sketch = copy.copy(self.trainer)
        sketch.options = options
        sketch.family = sketch.make_family()
        sketch.set_plan(sketch.plan)
        return sketch


def _with_host(phase: Phase, host: HostMemory, memory: DeviceMemory) -> Phase:
    """The phase with what lies in host memory then."""
    caches = host.caches
    if phase.name not in (TRAINING, SAMPLES):
        return replace(phase, host=phase.host + caches)
    most = max(host.training() + host.saving(memory.state_bytes), host.loading() + caches)
    return replace(phase, host=phase.host + most)
