"""What single samples lost: by timestep, and by picture and epoch.

The loss of a sample depends more on its timestep than on its picture. A picture's relative loss takes that out: each
loss is divided by the mean loss of its timesteps' bin, over all samples so far. 1 is as hard as the others; a picture
that stays well above 1 for many epochs is not learned.

Losses are added up as whole numbers, which give the same sum in any order. So the results do not depend on which
process saw which sample. What is kept grows with pictures times epochs, not with steps.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from library.tensorfile import write_atomically

NUM_BINS = 10
MAX_TIMESTEP = 1000
_UNIT_BITS = 80  # sums are in units of 2**-80: float32 losses down to 1e-17 lose nothing

LossRow = tuple[int, str, int, int, int]  # epoch, picture, bin, how many losses, their sum in whole units
COLUMNS = ("epoch", "picture", "seen", "loss", "relative_loss")


class TimestepBin(NamedTuple):
    """Losses of the timesteps from `start` up to `end`; None where there was no sample.

    Attributes:
        num_samples: Of the whole run.
        mean: Their mean loss.
        num_last: Samples of the last epoch.
        last_mean: Their mean loss.
    """

    start: int
    end: int
    num_samples: int
    mean: float | None
    num_last: int
    last_mean: float | None


class PictureLoss(NamedTuple):
    """One picture in one epoch; `seen` counts its samples, `loss` and `relative_loss` are means over them."""

    epoch: int
    picture: str
    seen: int
    loss: float
    relative_loss: float


class HardPicture(NamedTuple):
    """A picture and its mean relative loss over the last epochs."""

    picture: str
    relative_loss: float
    seen: int


class _Sum:
    """Losses added up."""

    def __init__(self, count: int = 0, total: int = 0) -> None:
        self.count, self.total = count, total

    def add(self, count: int, total: int) -> None:
        self.count += count
        self.total += total

    @property
    def mean(self) -> float | None:
        return self.total / (self.count << _UNIT_BITS) if self.count else None


class LossRecords:
    """Losses of a run. Rows go in with `add`, and count once they went through `take_new` and `extend`.

    With one process `records.extend(records.take_new())` at the end of an epoch is all. With several, each process
    extends its records by the rows that all processes have taken, so that all hold the same.
    """

    def __init__(self) -> None:
        self._new: dict[tuple[int, str, int], _Sum] = {}
        self._bins = [_Sum() for _ in range(NUM_BINS)]
        self._epoch = 0
        self._epoch_bins = [_Sum() for _ in range(NUM_BINS)]
        self._open: dict[str, list[_Sum]] = {}  # of the epoch that goes on, by picture and bin
        self._history: dict[str, array[float]] = {}  # of epochs before: epoch, seen, loss, relative loss, and so on

    # Rows in

    def add(self, epoch: int, rows: Iterable[tuple[str, float, float]]) -> None:
        """Take the samples of a step that this process trained.

        Args:
            epoch: Counted from 1.
            rows: (picture, timestep 0..1000, loss in float32) of each sample. Losses that are not finite are left out.
        """
        for picture, timestep, loss in rows:
            if math.isfinite(loss):
                key = (epoch, picture, _bin_of(timestep))
                self._new.setdefault(key, _Sum()).add(1, round(math.ldexp(loss, _UNIT_BITS)))

    def take_new(self) -> list[LossRow]:
        """The rows added since the last call, as plain values that can be sent to other processes."""
        rows = [(*key, item.count, item.total) for key, item in self._new.items()]
        self._new.clear()
        return rows

    def extend(self, rows: Iterable[Sequence[Any]]) -> None:
        """Count rows that were taken, from all processes, in any order.

        Raises:
            ValueError: A row is of an epoch before the last one that was counted.
        """
        for epoch, picture, number, count, total in sorted(map(tuple, rows)):
            if epoch < self._epoch:
                raise ValueError(f"a row of epoch {epoch} came after rows of epoch {self._epoch}")
            if epoch > self._epoch:
                self._close_epoch()
                self._epoch = epoch
            sums = self._open.setdefault(picture, [_Sum() for _ in range(NUM_BINS)])
            for item in (sums[number], self._bins[number], self._epoch_bins[number]):
                item.add(count, total)

    def _close_epoch(self) -> None:
        for row in self._open_rows():
            values = (row.epoch, row.seen, row.loss, row.relative_loss)
            self._history.setdefault(row.picture, array("d")).extend(values)
        self._open = {}
        self._epoch_bins = [_Sum() for _ in range(NUM_BINS)]

    def _open_rows(self) -> Iterator[PictureLoss]:
        means = [item.mean for item in self._bins]
        for picture in sorted(self._open):
            sums = self._open[picture]
            whole = _Sum(sum(item.count for item in sums), sum(item.total for item in sums))
            relative = sum(
                item.count * item.mean / mean if mean else item.count  # all losses of the bin are 0: none is harder
                for item, mean in zip(sums, means, strict=True)
                if item.mean is not None
            )
            yield PictureLoss(self._epoch, picture, whole.count, whole.mean or 0.0, relative / whole.count)

    # Results out

    def timestep_bins(self) -> list[TimestepBin]:
        """Mean losses by timestep, of the run and of the last epoch."""
        width = MAX_TIMESTEP // NUM_BINS
        return [
            TimestepBin(index * width, (index + 1) * width, whole.count, whole.mean, last.count, last.mean)
            for index, (whole, last) in enumerate(zip(self._bins, self._epoch_bins, strict=True))
        ]

    def epoch_mean(self) -> float | None:
        """Mean loss of the samples of the last epoch; None before the first."""
        bins = self._epoch_bins
        return _Sum(sum(item.count for item in bins), sum(item.total for item in bins)).mean

    def pictures(self) -> list[PictureLoss]:
        """Every picture in every epoch, sorted by epoch and name."""
        closed = [
            PictureLoss(int(epoch), picture, int(seen), loss, relative)
            for picture, values in self._history.items()
            for epoch, seen, loss, relative in zip(*[iter(values)] * 4, strict=True)
        ]
        return [*sorted(closed), *self._open_rows()]

    def hardest(self, num: int, *, last_epochs: int = 5) -> list[HardPicture]:
        """The pictures with the highest relative loss over the last epochs, hardest first.

        One epoch tells little: its losses depend on the noise that was drawn.
        """
        seen: dict[str, int] = {}
        relative: dict[str, float] = {}
        for row in self.pictures():
            if row.epoch > self._epoch - last_epochs:
                seen[row.picture] = seen.get(row.picture, 0) + row.seen
                relative[row.picture] = relative.get(row.picture, 0.0) + row.relative_loss * row.seen
        found = [HardPicture(picture, relative[picture] / count, count) for picture, count in seen.items()]
        return sorted(found, key=lambda item: (-item.relative_loss, item.picture))[:num]

    def write_by_image(self, path: Path) -> None:
        """Write `loss_by_image.csv`: a row for every picture and epoch. UTF-8.

        Raises:
            OutputError: It cannot be written; a former file is as it was.
        """

        def write(place: Path) -> None:
            with open(place, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                for row in self.pictures():
                    writer.writerow((row.epoch, row.picture, row.seen, f"{row.loss:.6g}", f"{row.relative_loss:.4f}"))

        write_atomically(path, write)

    # Resuming

    def state(self) -> dict[str, Any]:
        """Everything, as values that JSON keeps exactly. With several processes, of rows that all have counted."""
        return {
            "epoch": self._epoch,
            "bins": _to_pairs(self._bins),
            "epoch_bins": _to_pairs(self._epoch_bins),
            "open": {picture: _to_pairs(sums) for picture, sums in self._open.items()},
            "history": {picture: values.tolist() for picture, values in self._history.items()},
            "new": [[*key, item.count, item.total] for key, item in self._new.items()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._epoch = state["epoch"]
        self._bins, self._epoch_bins = _from_pairs(state["bins"]), _from_pairs(state["epoch_bins"])
        self._open = {picture: _from_pairs(pairs) for picture, pairs in state["open"].items()}
        self._history = {picture: array("d", values) for picture, values in state["history"].items()}
        self._new = {(row[0], row[1], row[2]): _Sum(row[3], row[4]) for row in state["new"]}


def _bin_of(timestep: float) -> int:
    return min(max(int(timestep * NUM_BINS / MAX_TIMESTEP), 0), NUM_BINS - 1)


def _to_pairs(sums: Iterable[_Sum]) -> list[list[int]]:
    return [[item.count, item.total] for item in sums]


def _from_pairs(pairs: Iterable[Sequence[int]]) -> list[_Sum]:
    return [_Sum(count, total) for count, total in pairs]
