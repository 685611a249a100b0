"""How much memory of the host a training takes beside its largest part, from the first encoder to the saved file.

    python -m benchmarks.host_memory [--scale 1.0]

Every row is a process of its own that makes one step on small pictures with random models: once with caches to fill,
so that each encoder is read, and once with all of them complete. What the process takes with the tiny model is taken
off: Python, torch and all else that the same command imports. Without a GPU the model itself lies in host memory, as
numbers of its own or, where the file has them in the wanted precision, as pages of the file, which count alike. Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.sized_model import ModelSize, SizedModel, build_model
from examples.tiny_sd3.make import build_tiny_sd3

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
SIZE = ModelSize(denoiser=(1024, 10), clip_l=(256, 6), clip_g=(768, 8), t5xxl=(1024, 12))
GOAL = 1.2  # times the largest part
STORED = ("float16", "bfloat16", "float32")
HELD = {"no": 4, "bf16": 2}  # bytes of a number by --mixed_precision
_LOOK_EVERY = 0.005  # seconds


@dataclass(frozen=True)
class Peak:
    """The most that a process had in memory, in bytes.

    Attributes:
        whole: All its pages, those of mapped files too.
        own: Without pages of files, which the system may take back at any time.
    """

    whole: int
    own: int


def measure(command: Sequence[str]) -> Peak:
    """Run a command to its end.

    Raises:
        SystemExit: It failed; with what it said.
    """
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        own = 0
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            own = max(own, _own_bytes(process.pid))
            time.sleep(_LOOK_EVERY)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read())
    return Peak(ended[2].ru_maxrss * 1024, own)


def _own_bytes(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def command(model: Sequence[str], folder: Path, *flags: str) -> list[str]:
    """One step on four small pictures."""
    config = folder / "dataset.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = '{(folder / 'pictures').as_posix()}'\n"
    config.write_text(f"[[datasets]]\nresolution = 64\nbatch_size = 1\ncaption_extension = '.txt'\n{subset}")
    values = {
        "dataset_config": config,
        "output_dir": folder / "output",
        "network_module": "networks.lora_sd3",
        "network_dim": 4,
        "max_train_steps": 1,
        "max_data_loader_n_workers": 0,
        "t5xxl_max_token_length": 64,
    }
    switches = ["network_train_unet_only", "cache_latents_to_disk", "cache_text_encoder_outputs_to_disk", "overwrite"]
    named = [f"--{name}={value}" for name, value in values.items()] + [f"--{name}" for name in switches]
    return [sys.executable, "sd3_train_network.py", *model, *named, *flags]


def copy_pictures(folder: Path, number: int = 4) -> None:
    """Pictures with captions, so that caches lie beside copies."""
    target = folder / "pictures"
    target.mkdir(parents=True)
    for path in sorted((ROOT / "examples" / "pictures").glob("*.png"))[:number]:
        for file in (path, path.with_suffix(".txt")):
            (target / file.name).write_bytes(file.read_bytes())


@dataclass(frozen=True)
class Row:
    """What one command took: caches to fill, then caches that are complete."""

    largest: int
    filling: Peak
    complete: Peak

    def cells(self, base: Row) -> list[str]:
        """What lies above the tiny model, in MiB: all pages and those that are no file's; and all in largest parts."""
        cells = []
        for own, tiny in ((self.filling, base.filling), (self.complete, base.complete)):
            more = own.whole - tiny.whole
            cells += [f"{more / MIB:.0f}", f"{(own.own - tiny.own) / MIB:.0f}", f"{more / self.largest:.2f}"]
        return cells


def both(model: Sequence[str], folder: Path, largest: int, *flags: str) -> Row:
    """Measure with caches to fill and with complete ones."""
    copy_pictures(folder)
    words = command(model, folder, *flags)
    return Row(largest, measure(words), measure(words))


def rows(
    scale: float, folder: Path, stored: Sequence[str] = STORED, kept: Sequence[str] = tuple(HELD)
) -> Iterator[tuple[str, Row, Row]]:
    """(what, figures of the tiny model, figures) for each way of storing and keeping the weights."""
    import torch

    tiny = [f"--pretrained_model_name_or_path={build_tiny_sd3(folder / 'tiny').model}"]
    base = {held: both(tiny, folder / f"base_{held}", 0, f"--mixed_precision={held}") for held in kept}
    for name in stored:
        model = build_model(folder / name, scaled(SIZE, scale), getattr(torch, name))
        for held in kept:
            for flags in ((), ("--disable_mmap_load_safetensors",)):
                place = folder / f"{name}_{held}_{len(flags)}"
                largest = HELD[held] * max(model.numbers.values())
                row = both(model.flags(), place, largest, f"--mixed_precision={held}", *flags)
                yield f"{name}, kept in {8 * HELD[held]} bits{', no mmap' if flags else ''}", base[held], row
        _remove(model)


def scaled(size: ModelSize, scale: float) -> ModelSize:
    """The same widths with more or fewer blocks."""

    def deep(part: tuple[int, int]) -> tuple[int, int]:
        return part[0], max(1, round(part[1] * scale))

    return ModelSize(deep(size.denoiser), deep(size.clip_l), deep(size.clip_g), deep(size.t5xxl))


def _remove(model: SizedModel) -> None:
    for path in model.files.values():
        path.unlink()


def main(argv: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="depth of the models; 1 is 0.6 GB in 16 bits")
    parser.add_argument("--stored", nargs="+", choices=STORED, default=STORED)
    parser.add_argument("--kept", nargs="+", choices=list(HELD), default=list(HELD), help="values of --mixed_precision")
    parser.add_argument("--rows", type=int, help="no more than this many")
    args = parser.parse_args(None if argv is None else list(argv))
    print("| stored | largest part, MiB | filling caches: peak, MiB | own | times | complete: peak | own | times |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        for what, base, row in islice(rows(args.scale, Path(name), args.stored, args.kept), args.rows):
            print(f"| {what} | {row.largest / MIB:.0f} | {' | '.join(row.cells(base))} |", flush=True)


if __name__ == "__main__":
    main()
