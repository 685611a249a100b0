"""Seconds, use of the arithmetic units and memory of a training step at true sizes, on a GPU.

    python -m benchmarks.gpu_step --family sdxl --time-limit 540
    python -m benchmarks.gpu_step --models SD3.5-medium --pixels 1024 --batches 3 --rows plain checkpointing
    python -m benchmarks.gpu_step --device cpu --sizes tiny --rows plain written

Rows come in the order of their importance, each is printed as soon as it is known, and one that would pass the time
limit is left out. All run in this one process, one after the other.

- Weights are random and made on the device. Text states and latents are random and lie in page-locked memory: what a
  loader leaves there. Pictures and captions are not read.
- ours: the trainers of the scripts, see `unfiled_training.py`. written: the same model in a hand-written loop, LoRA as
  one autograd function, no autocast (`plain_loop.py`, `unet_loops.py`). diffusers: its model with peft's LoRA
  (`diffusers_loop.py`); of SD3, query, key and value are three layers there and have a LoRA each.
- LoRA 16 and LoRA 128: beside every linear layer of the blocks. "attention": beside the projections of all attentions.
  LoRA 8: beside every layer of the attention blocks of a U-Net.
- s/step: median, from one step's end to the next by the GPU's own clock, after warm-up steps; on a CPU, CPU seconds.
- MFU: FLOPs that the mathematics asks for (`flops.py`, `unet_flops.py`; nothing that is computed again) over what the
  card could do in that time. The three loops share one count.
- Peak: the most that tensors took (allocated), and that torch took from the card (reserved), from the first step on.
- x: seconds over those of the row it is compared with: that without swapping, without compiling, ours, and so on.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from accelerate.state import AcceleratorState

from benchmarks.gpu_rows import DIFFUSERS, FAMILIES, OURS, TRAININGS, VARIANTS, Row, rows
from benchmarks.subject import SUBJECTS, Subject, Subjects
from benchmarks.unfiled_training import Unfiled, build_training
from library.device import choose_device, device_words
from library.errors import UserError
from library.memory_use import is_out_of_memory

PEAKS = {  # TFLOP/s, dense, in bf16 with sums in float32
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L4": 121,
    "L40S": 362,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
WARM_UP, LEAST_STEPS, MOST_STEPS = 3, 4, 20
GIB = 2**30
HEAD = ("model", "px", "batch", "training", "row", "s/step", "images/s", "MFU", "peak GiB", "reserved", "x", "remark")


@dataclass(frozen=True)
class Figures:
    """What a row came to.

    Attributes:
        seconds: Of a step; None where there is none.
        peak: Bytes of tensors at most, and bytes taken from the card; None where they are not counted.
        remark: A sentence.
    """

    seconds: float | None = None
    peak: tuple[int, int] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Bench:
    """Where and how long is measured.

    Attributes:
        seconds: For the steps of a row.
        tflops: What the card could do a second; None for unknown.
    """

    device: torch.device
    subjects: Subjects
    seconds: float
    tflops: float | None

    def measure(self, row: Row) -> Figures:
        """A row's figures; where it cannot be, why."""
        self._release()
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._measure(row, Path(folder))
        except UserError as error:
            return Figures(remark=_first_sentence(error))
        except ImportError as error:
            return Figures(remark=f"not installed: {error.name}")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return Figures(remark="out of memory")
        finally:
            self._release()

    def _measure(self, row: Row, folder: Path) -> Figures:
        if VARIANTS[row.variant].loop != OURS:
            return self._steps(self._other(row))
        trainer = self._ours(row, folder)
        try:
            batches = trainer.batches_from(0)
            found = self._steps(lambda: trainer.one_step(batches))
            return replace(found, remark=_joined(_said_of(trainer), found.remark))
        finally:
            trainer.let_go()

    def _steps(self, step: Callable[[], None]) -> Figures:
        """Time and memory of a step."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # of what building the model has taken
            torch.cuda.reset_peak_memory_stats(self.device)
        first, seconds = self._times(step)
        return Figures(median(seconds), self._peak(), _long(first, median(seconds)))

    def _ours(self, row: Row, folder: Path) -> Unfiled:
        training, subject = TRAININGS[row.training], self.subject(row)
        return build_training(
            folder,
            subject,
            [*training.all_flags(), *VARIANTS[row.variant].all_flags(subject.depth)],
            side=row.pixels // self.subjects.shrink,
            batch=row.batch,
            is_network=bool(training.rank),
        )

    def _other(self, row: Row) -> Callable[[], None]:
        variant, training = VARIANTS[row.variant], TRAININGS[row.training]
        return self.subject(row).other_step(
            training,
            side=row.pixels // self.subjects.shrink,
            batch=row.batch,
            device=self.device,
            is_diffusers=variant.loop == DIFFUSERS,
            recomputes=variant.recomputes,
        )

    def _times(self, step: Callable[[], None]) -> tuple[float, list[float]]:
        """Seconds of the first step, and of those that count."""
        warm = [self._timed(step, 1)[0] for _ in range(WARM_UP)]
        number = int(self.seconds / max(warm[-1], 1e-6))
        return warm[0], self._timed(step, max(LEAST_STEPS, min(MOST_STEPS, number)))

    def _timed(self, step: Callable[[], None], number: int) -> list[float]:
        if self.device.type != "cuda":
            marks = [time.process_time()]
            for _ in range(number):
                step()
                marks.append(time.process_time())
            return [end - start for start, end in pairwise(marks)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
        torch.cuda.synchronize(self.device)
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(events)]

    def _peak(self) -> tuple[int, int] | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)

    def _release(self) -> None:
        """Forget the last row."""
        AcceleratorState._reset_state(reset_partial_state=True)
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and to ask would load the compiler
            torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def subject(self, row: Row) -> Subject:
        """The model of a row."""
        return self.subjects.models[row.model]

    def flops(self, row: Row) -> float:
        """Of a step."""
        return row.batch * self.subject(row).flops(TRAININGS[row.training], row.pixels // self.subjects.shrink)

    def cells(self, row: Row, found: Figures, base: Figures | None) -> list[str]:
        """A line of the table."""
        cells = [row.model, str(row.pixels), str(row.batch), row.training, row.variant]
        if found.seconds is None:
            return [*cells, *["-"] * 6, found.remark]
        used = self.flops(row) / found.seconds / 1e12
        is_compared = base is not None and base.seconds is not None and base is not found
        return [
            *cells,
            f"{found.seconds:.4g}",
            f"{row.batch / found.seconds:.3g}",
            f"{used / self.tflops:.1%}" if self.tflops else "-",
            *([f"{num_bytes / GIB:.2f}" for num_bytes in found.peak] if found.peak else ["-", "-"]),
            f"{found.seconds / base.seconds:.3f}" if is_compared else "-",  # type: ignore[union-attr, operator]
            found.remark,
        ]


def _said_of(trainer: Unfiled) -> str:
    """What a reader of the figures has to know."""
    trainer.flush_report()
    is_bad = not all(math.isfinite(loss) for loss in trainer.loss_history)
    parts = max(trainer.make_step.num_parts.values(), default=1)
    return _joined(
        "losses are not finite" if is_bad else "",
        f"did not fit as a whole: in {parts} parts" if parts > 1 else "",
    )


def _long(first: float, usual: float) -> str:
    return f"first step {first:.0f} s" if first > 5 + 3 * usual else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].replace("|", "/")


@dataclass
class Limit:
    """Foresees what a row takes, from those before it.

    Attributes:
        seconds: For all rows together.
        steps_seconds: That the steps of a row are meant to take.
    """

    seconds: float
    steps_seconds: float

    def __post_init__(self) -> None:
        self._start = time.perf_counter()
        self._around = 0.0  # the most that a row took beside its steps
        self._speed = math.inf  # FLOPs a second of the slowest row

    def allows(self, flops: float) -> bool:
        """Whether a row with so many FLOPs a step will probably be done in time."""
        step = flops / self._speed
        steps = max(self.steps_seconds, LEAST_STEPS * step) + WARM_UP * step
        return time.perf_counter() - self._start + self._around + steps < self.seconds

    def learn(self, flops: float, found: Figures, wall: float) -> None:
        """A row took so many seconds in all."""
        if found.seconds:
            self._speed = min(self._speed, flops / found.seconds)
            self._around = max(self._around, wall - self.steps_seconds)


def table(bench: Bench, chosen: Sequence[Row], limit: Limit) -> Iterator[str]:
    """The lines of the table, and how many rows were left out."""
    yield f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}"
    known: dict[Row, Figures] = {}
    left_out = 0
    for row in chosen:
        flops = bench.flops(row)
        if not limit.allows(flops):
            left_out += 1
            continue
        start = time.perf_counter()
        known[row] = found = bench.measure(row)
        limit.learn(flops, found, time.perf_counter() - start)
        base = known.get(Row(row.model, row.pixels, row.batch, row.training, VARIANTS[row.variant].against))
        yield f"| {' | '.join(bench.cells(row, found, base))} |"
    yield f"\n{left_out} of {len(chosen)} rows were left out for want of time."


def peak_tflops(name: str) -> float | None:
    """What a card of this name could do a second, in bf16; None for one that is not known."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    return next((float(peak) for card, peak in PEAKS.items() if words.issuperset(card.split())), None)


def choose(given: argparse.Namespace) -> list[Row]:
    """The rows that options ask for, in their order; a variant that none of them has joins at the end."""
    family = FAMILIES.get(given.family)
    wanted = {
        "model": given.models or family,
        "pixels": given.pixels,
        "batch": given.batches,
        "training": given.trainings,
        "variant": given.rows,
    }
    return [
        row for row in rows() if all(values is None or getattr(row, name) in values for name, values in wanted.items())
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="where it runs; not given: a GPU if there is one")
    parser.add_argument("--sizes", choices=list(SUBJECTS), default="true", help="tiny: the same code at small widths")
    parser.add_argument("--family", choices=list(FAMILIES), help="not given: all, SD3 first")
    parser.add_argument("--models", nargs="+", choices=[name for names in FAMILIES.values() for name in names])
    parser.add_argument("--pixels", nargs="+", type=int, choices=[512, 1024])
    parser.add_argument("--batches", nargs="+", type=int, choices=[1, 3, 4])
    parser.add_argument("--trainings", nargs="+", choices=list(TRAININGS))
    parser.add_argument("--rows", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds for everything")
    parser.add_argument("--seconds", type=float, default=6.0, help="for the steps of a row")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the card in bf16, dense; known for " + ", ".join(PEAKS))
    return parser


def main(argv: Iterable[str] | None = None) -> int:
    """Measure and print."""
    given = _parser().parse_args(None if argv is None else list(argv))
    limit = Limit(given.time_limit, given.seconds)
    logging.getLogger("easel").setLevel("ERROR")
    device = choose_device() if given.device is None else torch.device(given.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    words = device_words(device)
    tflops = given.peak or peak_tflops(words)
    print(f"{words}, torch {torch.__version__}, {given.sizes} sizes, {tflops or 'unknown'} TFLOP/s in bf16\n")
    for line in table(Bench(device, SUBJECTS[given.sizes], given.seconds, tflops), choose(given), limit):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
