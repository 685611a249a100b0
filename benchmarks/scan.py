"""Seconds and memory for finding and planning many pictures: the first time, and when the index knows them.

    python -m benchmarks.scan [--pictures 20000]

Half JPEG and half PNG, each of a few hundred distinct pictures of 100 to 300 pixels written under many names, with a
caption file each; a quarter of the JPEGs with a camera's EXIF. Headers take as long as those of large pictures. All
files were written just before, so they come from memory, not from a drive. Each row is a process of its own; imports
are not counted in seconds. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DISTINCT = 400
EPOCHS = 5


def make_pictures(folder: Path, number: int) -> None:
    """Write pictures and captions."""
    draw = random.Random(0)
    contents = [_picture(draw, index) for index in range(min(DISTINCT, number))]
    folder.mkdir()
    for index in range(number):
        suffix, data = contents[index % len(contents)]
        (folder / f"picture {index:05}{suffix}").write_bytes(data)
        tags = ", ".join(f"tag {draw.randrange(1000)}" for _ in range(draw.randint(3, 25)))
        (folder / f"picture {index:05}.txt").write_text(f"picture {index}, {tags}\n", encoding="utf-8")


def _picture(draw: random.Random, index: int) -> tuple[str, bytes]:
    from PIL import Image

    size = draw.randint(100, 300), draw.randint(100, 300)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    file = BytesIO()
    if index % 8 == 0:
        exif = Image.Exif()
        exif.update({0x010F: "Maker", 0x0110: "Model", 0x0112: 1, 0x0132: "2024:01:01 00:00:00"})
        image.save(file, "JPEG", exif=exif)
    else:
        image.save(file, "JPEG" if index % 2 == 0 else "PNG")
    return (".jpg" if index % 2 == 0 else ".png"), file.getvalue()


def measure(pictures: Path, index_dir: Path, task: str) -> dict[str, Any]:
    """Do one task in this process; seconds of its parts, and the peak memory in MiB after each."""
    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin  # noqa: F401  imports are not what is measured

    from library.data.config.specs import DatasetSpec, SubsetSpec
    from library.records import Size
    from library.training.planning import PlanSettings, plan_data

    figures: dict[str, Any] = {"memory before": _peak()}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        figures[name] = (time.perf_counter() - start, time.process_time() - cpu)
        figures[f"memory after {name}"] = _peak()
        return result

    subset = SubsetSpec(image_dir=pictures, caption_extension=".txt")
    spec = DatasetSpec(resolution=Size(1024, 1024), batch_size=4, enable_bucket=True, subsets=(subset,))
    plan = timed("plan", lambda: plan_data("benchmark", [spec], PlanSettings(), index_dir=index_dir))
    figures["pictures"] = len(plan.records)
    plan.refuse_faults()
    if task == "epochs":
        timed("epoch", lambda: plan.epoch(1, seed=0, rank=0))
        timed("epochs", lambda: [len(plan.epoch(epoch, seed=0, rank=0)) for epoch in range(2, EPOCHS + 1)])
    return figures


def _peak() -> float:
    """MiB this process has had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def run(pictures: Path, index_dir: Path, task: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scan", "--task", task, str(pictures), str(index_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main(argv: Iterable[str] | None = None) -> None:
    """Make pictures, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(None if argv is None else list(argv))
    if options.task:
        task, pictures, index_dir = options.task
        sys.stdout.write(json.dumps(measure(Path(pictures), Path(index_dir), task)))
        return
    with tempfile.TemporaryDirectory() as name:
        pictures, index = Path(name, "pictures"), Path(name, "index")
        make_pictures(pictures, options.pictures)
        first = run(pictures, index, "plan")
        second = run(pictures, index, "plan")
        epochs = run(pictures, index, "epochs")
        size = sum(file.stat().st_size for file in index.iterdir())
    report(first, second, epochs, size)


def report(first: dict[str, Any], second: dict[str, Any], epochs: dict[str, Any], index_bytes: int) -> None:
    """Print the tables."""

    def line(title: str, figures: tuple[float, float]) -> str:
        return f"| {title} | {figures[0]:.2f} | {figures[1]:.2f} |"

    out = [
        f"{first['pictures']:,} pictures; the index has {index_bytes / 1e6:.1f} MB",
        "| | wall seconds | CPU seconds |\n| --- | --- | --- |",
        line("first start: scan and plan", first["plan"]),
        line("second start: scan and plan", second["plan"]),
        line("order of one epoch", epochs["epoch"]),
        "| | peak memory, MiB |\n| --- | --- |",
        *(
            f"| {title} | {figures[key]:.0f} |"
            for title, figures, key in (
                ("before", second, "memory before"),
                ("first start", first, "memory after plan"),
                ("second start", second, "memory after plan"),
                ("second start and one epoch", epochs, "memory after epoch"),
                (f"second start and {EPOCHS} epochs", epochs, "memory after epochs"),
            )
        ),
    ]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
