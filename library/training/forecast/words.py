"""A forecast in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from library.data.report.report_text import WIDTH, bytes_in_words, table
from library.training.forecast.figures import GIB, Disk, Forecast, Phase


def describe_forecast(
    forecast: Forecast, disk: Disk, *, device_bytes: int | None = None, host_bytes: int | None = None
) -> list[str]:
    """The section that `--dry_run` shows.

    Args:
        forecast: Of the run.
        disk: What it writes.
        device_bytes: What the device has free; None where there is none, or it does not say.
        host_bytes: What the host has free; None where it does not matter.
    """
    where = "HOST MEMORY, on the CPU" if forecast.is_on_cpu else "GPU MEMORY"
    cards = f", on each of {forecast.num_cards} cards" if forecast.num_cards > 1 else ""
    lines = [f"{where}{cards}, about; the largest batch is {forecast.batch}"]
    if forecast.is_on_cpu:
        lines.append(f"  the program itself takes {gib(forecast.process)}, and beside it:")
    lines += table(["phase", "at most"], [[phase.name, gib(phase.device)] for phase in forecast.phases])
    lines += wrapped(f"training: {_parts(forecast.training)}")
    lines += wrapped(_peak(forecast, device_bytes))
    lines += ["", *wrapped(_host(forecast, host_bytes)), *wrapped(_disk(disk))]
    for note in forecast.notes:
        lines += wrapped(note)
    return lines


def gib(number: int) -> str:
    """For instance "11.5 GiB"."""
    amount = number / GIB
    return f"{amount:.1f} GiB" if amount >= 1 else f"{amount:.2f} GiB"


def _parts(phase: Phase) -> str:
    large = {words: number for words, number in phase.parts.items() if number >= phase.device / 100}
    return ", ".join(f"{words} {gib(number)}" for words, number in large.items())


def _peak(forecast: Forecast, device_bytes: int | None) -> str:
    peak = forecast.peak
    most = forecast.host if forecast.is_on_cpu else peak.device
    text = f"most: {gib(most)}, in the phase {peak.name}"
    if device_bytes is None or forecast.is_on_cpu:
        return text
    if most <= device_bytes:
        return f"{text}; the GPU has {gib(device_bytes)}: it fits"
    return f"{text}; the GPU has {gib(device_bytes)}: it does not fit. --fit {device_bytes / GIB:.3g}GiB finds settings"


def _host(forecast: Forecast, free: int | None) -> str:
    workers = f", and {gib(forecast.workers)} for the processes that read pictures" if forecast.workers else ""
    told = f"host memory: {gib(forecast.host)} at most{workers}"
    if free is None:
        return told
    is_short = forecast.host - forecast.process + forecast.workers > free
    return f"{told}; {gib(free)} are free here{': TOO LITTLE' if is_short else ''}"


def _disk(disk: Disk) -> str:
    return f"disk, beside caches: {bytes_in_words(disk.one_save)} a save, {bytes_in_words(disk.all_saves)} for all"


def wrapped(text: str) -> Iterator[str]:
    """The text in lines of the section."""
    yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
