"""The curves of a run as one picture: losses, learning rates, and the loss by timestep.

Equal curves give equal files, so nothing in a file tells when it was made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from library.errors import EnvironmentFault, OutputError
from library.log import get_logger
from library.tensorfile import write_atomically
from library.training.watching.loss_records import TimestepBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

logger = get_logger(__name__)

_INCHES = (12.0, 9.0)
_DPI = 100  # 1200 x 900 pixels
_MAX_POINTS = 1500  # more do not show at this width
_SMOOTHING = 20  # the smoothed curve is a mean over 1/20 of the run
_LEAST_SMOOTHED = 10  # steps
_FEW_POINTS = 30
_MAX_EPOCH_MARKS = 60
_MAX_TITLE = 36
_MAX_NAMED = 6  # learning rates in the legend
_FEW_NAMED = 3  # that leave the curves room enough
_MAX_NAME = 22
_ROOM_ABOVE = 1.75  # for the legend of more
_TRAIN, _VALIDATION, _LAST, _MARK = "#2563a8", "#d1581b", "#7fb0dd", "#b8b8b8"
_STYLE = {
    "font.size": 11,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
}


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What is drawn.

    Attributes:
        steps: Optimizer steps, ascending.
        losses: One for each step; NaN where a step was skipped.
        rates: Learning rates by part, one for each step.
        validation: (step, loss) of each validation.
        epoch_ends: Steps at which epochs ended.
        bins: Losses by timestep; may be empty.
        title: Name of the run.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    rates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    validation: Sequence[tuple[int, float]] = ()
    epoch_ends: Sequence[int] = ()
    bins: Sequence[TimestepBin] = ()
    title: str = ""


class CurvePicture:
    """The picture of a run, drawn anew from time to time. What prevents that is told once, and training goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has_failed = False

    def draw(self, curves: Curves) -> Path | None:
        """Draw; the file, or None if there is none of these curves."""
        try:
            draw_curves(self.path, curves)
        except (EnvironmentFault, OutputError) as error:
            if not self._has_failed:
                logger.warning("no picture of the curves: %s", error)
            self._has_failed = True
            return None
        return self.path


def draw_curves(path: Path, curves: Curves) -> None:
    """Write a PNG of 1200 x 900 pixels.

    Raises:
        OutputError: It cannot be written; a former file is as it was.
        EnvironmentFault: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFault(
            f"the Python package matplotlib cannot be imported ({error}). Run `pip install matplotlib`."
        ) from error

    with _own_style():
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        _draw(figure, curves)
        write_atomically(path, lambda place: canvas.print_png(str(place), metadata={"Software": None}))


@contextmanager
def _own_style() -> Iterator[None]:
    """The same look whatever the user's settings of matplotlib are."""
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a title in a script that the font lacks
        yield


def _draw(figure: Figure, curves: Curves) -> None:
    grid = figure.add_gridspec(2, 2, height_ratios=(2.4, 1))
    losses = figure.add_subplot(grid[0, :])
    _draw_losses(losses, curves)
    _draw_rates(figure.add_subplot(grid[1, 0], sharex=losses), curves)
    _draw_bins(figure.add_subplot(grid[1, 1]), curves.bins)


# Losses


def _draw_losses(axes: Axes, curves: Curves) -> None:
    steps, losses = np.asarray(curves.steps, dtype=float), np.asarray(curves.losses, dtype=float)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    smooth = smoothed(losses, max(min(_LEAST_SMOOTHED, len(losses) // 4), len(losses) // _SMOOTHING, 1))
    validation = np.array([point for point in curves.validation if np.isfinite(point[1])], dtype=float).reshape(-1, 2)
    _mark_epochs(axes, curves.epoch_ends)
    marker = "o" if len(steps) <= _FEW_POINTS else ""  # a line of one point does not show
    axes.plot(*envelope(steps, losses), color=_TRAIN, alpha=0.25, linewidth=1, label="training")
    axes.plot(*thinned(steps, smooth), color=_TRAIN, linewidth=2.2, label="training, smoothed", marker=marker)
    if len(validation):
        axes.plot(*validation.T, color=_VALIDATION, linewidth=1.4, marker="o", markersize=4.5, label="validation")
        lowest = validation[validation[:, 1].argmin()]
        axes.plot(*lowest, "o", color=_VALIDATION, markersize=10, fillstyle="none", label=f"lowest: {lowest[1]:.4g}")
    _mark_skipped(axes, steps[np.isnan(losses)])
    _limit(axes, losses, smooth, validation[:, 1])
    axes.set_title(_plain(curves.title) or "Loss", parse_math=False, weight="bold")
    axes.set_ylabel("loss")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize=10, columnspacing=1.4, handlelength=1.6)
    _step_axis(axes, steps)


def smoothed(values: Numbers, width: int) -> Numbers:
    """Mean of the `width` values around each one, fewer at the ends; NaN is left out, and stays where it was.

    Args:
        values: Shape [N].
        width: At least 1.
    """
    is_known = np.isfinite(values)
    before, after = (width - 1) // 2, width // 2
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_known)])
    place = np.arange(len(values))
    low, high = np.maximum(place - before, 0), np.minimum(place + after + 1, len(values))
    means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(is_known, means, np.nan)


def thinned(steps: Numbers, values: Numbers, limit: int = _MAX_POINTS) -> tuple[Numbers, Numbers]:
    """At most `limit` points at equal distances, the first and the last among them."""
    if len(steps) <= limit:
        return steps, values
    chosen = np.linspace(0, len(steps) - 1, limit).round().astype(int)
    return steps[chosen], values[chosen]


def envelope(steps: Numbers, values: Numbers, limit: int = _MAX_POINTS) -> tuple[Numbers, Numbers]:
    """At most `limit` points whose line looks like that of all: the lowest and the highest value of equal stretches."""
    if len(steps) <= limit:
        return steps, values
    chosen: list[int] = []
    for stretch in np.array_split(np.arange(len(values)), limit // 2):
        known = stretch[np.isfinite(values[stretch])]
        ends = {known[values[known].argmin()], known[values[known].argmax()]} if len(known) else {stretch[0]}
        chosen += sorted(int(index) for index in ends)
    return steps[chosen], values[chosen]


def _mark_epochs(axes: Axes, ends: Sequence[int]) -> None:
    every = -(-len(ends) // _MAX_EPOCH_MARKS) if ends else 1
    for index, step in enumerate(list(ends)[every - 1 :: every]):
        name = ("end of an epoch" if every == 1 else f"every {every} epochs") if index == 0 else None
        axes.axvline(step, color=_MARK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0.5, label=name)


def _mark_skipped(axes: Axes, steps: Numbers) -> None:
    if len(steps):
        marks, _ = thinned(steps, steps)
        heights = np.full(len(marks), 0.01)
        words = f"{len(steps)} skipped"
        axes.plot(marks, heights, "|", color="#b00020", transform=axes.get_xaxis_transform(), label=words)


def _limit(axes: Axes, losses: Numbers, smooth: Numbers, validation: Numbers) -> None:
    """A few outliers shall not flatten the curve."""
    known = losses[np.isfinite(losses)]
    if not len(known):
        return
    shown = np.concatenate([np.percentile(known, (1, 98)), smooth[np.isfinite(smooth)], validation])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 0.1
    axes.set_ylim(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin)


def _step_axis(axes: Axes, steps: Numbers) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    if len(steps):
        margin = max(0.01 * (steps[-1] - steps[0]), 0.5)
        axes.set_xlim(steps[0] - margin, steps[-1] + margin)


def _plain(title: str, limit: int = _MAX_TITLE) -> str:
    """Of a length that fits, and without the half signs that names of files may have, which no font can draw."""
    short = title if len(title) <= limit else f"{title[: limit - 3]}..."
    return short.encode("utf-8", "replace").decode("utf-8")


# Learning rates, timesteps


def _draw_rates(axes: Axes, curves: Curves) -> None:
    steps = np.asarray(curves.steps, dtype=float)
    marker = "o" if len(steps) == 1 else ""
    num_others = max(len(curves.rates) - _MAX_NAMED, 0)
    for index, (name, rates) in enumerate(curves.rates.items()):
        points = thinned(steps, np.asarray(rates, dtype=float))
        if index < _MAX_NAMED:
            axes.plot(*points, linewidth=1.6, label=_plain(name, _MAX_NAME), marker=marker)
            continue
        others = f"{num_others} other{'s'[: num_others - 1]}" if index == _MAX_NAMED else None
        axes.plot(*points, linewidth=1, color=_MARK, zorder=1.8, label=others, marker=marker)  # behind the named
    axes.set_title("Learning rate")
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if len(curves.rates) > _FEW_NAMED:
        axes.set_ylim(top=axes.get_ylim()[1] * _ROOM_ABOVE)
        axes.legend(fontsize=8, ncols=2, loc="upper left")
    elif len(curves.rates) > 1:
        axes.legend(fontsize=9)
    elif not curves.rates:
        _say_nothing(axes)


def _draw_bins(axes: Axes, bins: Sequence[TimestepBin]) -> None:
    known = [item for item in bins if item.num_samples]
    axes.set_title("Loss by timestep")
    axes.set_xlabel("timestep (1000: pure noise)")
    if not known:
        _say_nothing(axes)
        return
    starts = np.array([item.start for item in known], dtype=float)
    width = (known[0].end - known[0].start) * 0.42
    last: Any = [item.last_mean or 0.0 for item in known]
    whole: Any = [item.mean for item in known]
    axes.bar(starts + width * 0.65, whole, width, color=_TRAIN, label="whole run")
    axes.bar(starts + width * 1.65, last, width, color=_LAST, label="last epoch")
    axes.set_xlim(bins[0].start, bins[-1].end)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.25)
    axes.legend(fontsize=9, ncols=2, loc="upper right")


def _say_nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", va="center", color="#888888")
