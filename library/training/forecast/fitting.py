"""`--fit` and `--blocks_to_swap=auto`: settings with which a run should fit into the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.log import get_logger
from library.training.forecast.figures import Forecast
from library.training.forecast.forecast import Forecaster
from library.training.forecast.ladder import Rung, advice, ladder, swap_rung, with_values
from library.training.forecast.words import gib

if TYPE_CHECKING:
    from library.training.trainer import Trainer

logger = get_logger(__name__)

_FORMAT = "base_weights_dtype"


@dataclass(frozen=True)
class Fitting:
    """What to fit into, and what may be tried.

    Attributes:
        limit: Bytes of the device.
        words: What it is called, "12GB".
        flag: That asks for it.
        rungs: Settings to try, in this order.
        forecast: Gives the forecast with some options.
    """

    limit: int
    words: str
    flag: str
    rungs: tuple[Rung, ...]
    forecast: Callable[[Any], Forecast]

    @classmethod
    def of(cls, forecaster: Forecaster) -> Fitting | None:
        """What the options of a trainer ask for; None where `auto` has no device to ask."""
        from library.memory_use import device_memory_to_have

        trainer, memory = forecaster.trainer, forecaster.trainer.options.memory
        depth = len(forecaster.counts(trainer.options).block_bytes)
        if memory.bytes_to_fit is not None:
            rungs = tuple(ladder(trainer, depth))
            return cls(memory.bytes_to_fit, str(memory.fit), f"--fit {memory.fit}", rungs, forecaster.of)
        limit = device_memory_to_have()
        if limit is None:
            return None
        return cls(limit, f"{gib(limit)} that are free", "--blocks_to_swap auto", (swap_rung(depth),), forecaster.of)

    def fit(self, options: Any) -> tuple[Any, list[str]]:
        """Choose settings.

        Args:
            options: Of the run.

        Returns:
            Options with what was chosen, and a line for each setting.

        Raises:
            OptionError: Not even all of them suffice.
        """
        if options.memory.blocks_to_swap == "auto":
            options = with_values(options, {"blocks_to_swap": None})
        first = before = self.forecast(options)
        lines: list[str] = []
        for rung in self.rungs:
            if self._is_enough(before):
                break
            values, after = self._best(options, rung)
            if self._excess(after) < self._excess(before):
                flags = " ".join(flag_of(name, value) for name, value in values.items() if value is not None)
                lines.append(f"{flags}: {_change(before, after)}")
                options, before = with_values(options, values), after
        if not self._is_enough(before):
            raise OptionError(self._too_much(before, options))
        if not lines:
            lines.append(f"nothing has to be changed: {gib(before.peak.device)} at most")
        options, more = self._ease_samples(options)
        host = before.host - first.host
        grown = [f"host memory: {gib(first.host)} -> {gib(before.host)}"] if host > first.host // 10 else []
        return options, [*lines, *more, *grown]

    def _best(self, options: Any, rung: Rung) -> tuple[Mapping[str, Any], Forecast]:
        """The first values that suffice, or those that help the most."""
        tried = []
        for values in rung.values:
            after = self.forecast(with_values(options, values))
            if self._is_enough(after):
                return values, after
            tried.append((values, after))
        return min(tried, key=lambda pair: self._excess(pair[1]))

    def _ease_samples(self, options: Any) -> tuple[Any, list[str]]:
        """Fewer swapped blocks while samples are drawn, which is then faster."""
        memory, now = options.memory, self.forecast(options).sampling
        is_open = "sample_blocks_to_swap" not in options.given and memory.sample_blocks_to_swap is None
        if now is None or not isinstance(memory.blocks_to_swap, int) or not memory.blocks_to_swap or not is_open:
            return options, []
        for number in range(memory.blocks_to_swap):
            eased = with_values(options, {"sample_blocks_to_swap": number})
            after = self.forecast(eased).sampling
            if after is not None and after.device <= self.limit:
                text = f"--sample_blocks_to_swap={number}: samples take {gib(now.device)} -> {gib(after.device)}"
                return eased, [text]
        return options, []

    def _is_enough(self, forecast: Forecast) -> bool:
        return forecast.peak.device <= self.limit

    def _excess(self, forecast: Forecast) -> int:
        """Of all phases together: what helps one of them helps."""
        return sum(max(0, phase.device - self.limit) for phase in forecast.phases)

    def _too_much(self, forecast: Forecast, options: Any) -> str:
        peak = forecast.peak
        return (
            f"{self.flag}: with every setting that saves memory the run would take {gib(peak.device)}, "
            f"{gib(peak.device - self.limit)} too much, in the phase {peak.name}. What else helps: {advice(options)}."
        )


def _change(before: Forecast, after: Forecast) -> str:
    """Of the phase that takes the most; where it stays the same, of the one that shrinks the most."""
    if after.peak.device < before.peak.device:
        return f"{gib(before.peak.device)} -> {gib(after.peak.device)}"
    there = {phase.name: phase.device for phase in after.phases}
    phase = max(before.phases, key=lambda one: one.device - there.get(one.name, one.device))
    return f"{phase.name} {gib(phase.device)} -> {gib(there.get(phase.name, phase.device))}"


def fit_run(trainer: Trainer) -> Any:
    """The options that a run goes on with: what `--fit` or `auto` chooses is told and set.

    Raises:
        OptionError: Nothing suffices.
    """
    options = trainer.options
    forecaster = Forecaster(trainer)
    if forecaster.device.type == "cpu":
        if options.memory.fit:
            logger.warning("--fit has no effect without a GPU, unless with --dry_run, which proposes settings for one.")
        else:
            logger.warning("--blocks_to_swap auto has no effect without a GPU: there is nothing to swap.")
        return with_values(options, {"blocks_to_swap": None}) if options.memory.blocks_to_swap == "auto" else options
    fitting = Fitting.of(forecaster)
    if fitting is None:
        raise OptionError(
            f"--blocks_to_swap auto: this machine does not say how much memory {forecaster.device} has. Give --fit and "
            "a size, or a number of blocks."
        )
    options, fitting = as_resumed(trainer, fitting)
    chosen, lines = fitting.fit(options)
    for line in lines:
        logger.info("%s: %s", fitting.flag, line)
    return chosen


def as_resumed(trainer: Trainer, fitting: Fitting) -> tuple[Any, Fitting]:
    """Options and rungs of a run that goes on: what its weights were rounded to stays, for it changes results."""
    options = trainer.options
    if options.saving.resume is None or options.memory.weights_format is not None:
        return options, fitting
    kept = replace(fitting, rungs=tuple(rung for rung in fitting.rungs if not _rounds(rung)))
    if options.hub.resume_from_huggingface:  # what the state was made with is known when it is here
        return options, kept
    state = _options_of_state(trainer)
    return (options, fitting) if state is None else (with_values(options, {_FORMAT: state.get(_FORMAT)}), kept)


def _rounds(rung: Rung) -> bool:
    return any(_FORMAT in values for values in rung.values)


def _options_of_state(trainer: Trainer) -> Mapping[str, Any] | None:
    """Those of the run that `--resume` goes on with, as its state has them; None where there is none."""
    from library.training.saving.run_state import find_state, read_progress

    saving = trainer.options.saving
    state = find_state(saving.resume, trainer.folder, saving.output_name)
    if state is None:
        return None
    options: Mapping[str, Any] = read_progress(state.path).get("identity", {}).get("options", {})
    return options


def flag_of(name: str, value: Any) -> str:
    """As a user types it."""
    return f"--{name}" if value is True else f"--{name}={value}"


def flags_of(before: Any, after: Any) -> Iterator[str]:
    """What differs, as a user types it."""
    old = before.values()
    for name, value in after.values().items():
        if value != old[name] and value is not None:
            yield flag_of(name, value)
