"""The lines about memory, disk and time that `--dry_run` shows behind those about the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from library.device import choose_device
from library.memory_use import available_host_memory, device_memory_to_have
from library.training.forecast.disk_space import disk_of
from library.training.forecast.fitting import Fitting, flags_of
from library.training.forecast.forecast import Forecaster
from library.training.forecast.words import describe_forecast, wrapped

if TYPE_CHECKING:
    from library.training.trainer import Trainer


def forecast_lines(trainer: Trainer) -> Iterator[str]:
    """All of them. With `--fit` they are about a GPU, also where there is none."""
    options = trainer.options
    is_proposing = options.memory.fit is not None
    device = torch.device("cuda") if is_proposing and choose_device().type == "cpu" else choose_device()
    forecaster = Forecaster(trainer, device)
    forecast = forecaster.of(options)
    disk = disk_of(trainer, forecaster.counts(options).trained)
    has_one = device == choose_device()
    yield from describe_forecast(
        forecast,
        disk,
        device_bytes=device_memory_to_have() if has_one else None,
        host_bytes=available_host_memory() if has_one else None,
    )
    if is_proposing or options.memory.blocks_to_swap == "auto":
        yield from _proposal(forecaster, trainer)
    if options.data.dry_run == "measure":
        from library.training.forecast.run_time import time_lines

        yield ""
        here = forecaster if has_one else Forecaster(trainer)
        yield from time_lines(trainer, here.counts(options))


def _proposal(forecaster: Forecaster, trainer: Trainer) -> Iterator[str]:
    fitting = Fitting.of(forecaster)
    if fitting is None:
        yield ""
        yield from wrapped("--blocks_to_swap auto: there is no GPU to fit into here. Add --fit and the memory of one.")
        return
    chosen, lines = fitting.fit(trainer.options)
    yield ""
    yield f"TO FIT INTO {fitting.words}"
    for line in lines:
        yield from wrapped(line)
    if flags := list(flags_of(trainer.options, chosen)):
        yield from wrapped(f"flags to add: {' '.join(flags)}")
