"""CPU seconds from the start of a process to the end of its first training step, on a tiny model with complete caches.

    python -m benchmarks.startup [--runs 5] [--rows 1 2]

A run makes one step, writes its file and ends, so the figures are a little above what the title says. They count the
process and all processes it starts. The commands take turns. Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from examples.tiny_sd3.make import build_tiny_sd3

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "sd3_train_network.py"


def arguments(folder: Path) -> list[str]:
    """A run of one step that reads everything from caches."""
    config = folder / "dataset.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = '{(folder / 'pictures').as_posix()}'\n"
    config.write_text(f"[[datasets]]\nresolution = 64\nbatch_size = 1\ncaption_extension = '.txt'\n{subset}")
    values = {
        "pretrained_model_name_or_path": build_tiny_sd3(folder / "model").model,
        "dataset_config": config,
        "output_dir": folder / "output",
        "network_module": "networks.lora_sd3",
        "network_dim": 16,
        "max_train_steps": 1,
    }
    switches = ["network_train_unet_only", "cache_latents_to_disk", "cache_text_encoder_outputs_to_disk", "overwrite"]
    return [f"--{name}={value}" for name, value in values.items()] + [f"--{name}" for name in switches]


def copy_pictures(folder: Path) -> None:
    """The pictures of the repository, so that the caches lie beside copies."""
    target = folder / "pictures"
    target.mkdir()
    for path in (ROOT / "examples" / "pictures").iterdir():
        if path.suffix in (".png", ".jpg", ".txt"):
            (target / path.name).write_bytes(path.read_bytes())


def commands(folder: Path) -> dict[str, list[str]]:
    """What is measured, by name."""
    python = sys.executable
    run = [python, SCRIPT, *arguments(folder)]
    measured = {
        "`python -c 'import torch'`": [python, "-c", "import torch"],
        "`--help`": [python, SCRIPT, "--help"],
        "no loader process": [*run, "--max_data_loader_n_workers=0"],
        "one loader process": [*run, "--max_data_loader_n_workers=1"],
        "gradient checkpointing": [*run, "--max_data_loader_n_workers=0", "--gradient_checkpointing"],
    }
    if find_spec("bitsandbytes"):
        measured["AdamW8bit"] = [*run, "--max_data_loader_n_workers=0", "--optimizer_type=AdamW8bit"]
    launch = [python, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process=1", *run[1:]]
    measured["through `accelerate launch`"] = [*launch, "--max_data_loader_n_workers=0"]
    return measured


def time_command(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """CPU seconds and wall seconds of a command.

    Raises:
        SystemExit: It failed; with what it said.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main(argv: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", help="of the table, from 0; not given: all")
    args = parser.parse_args(None if argv is None else list(argv))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        copy_pictures(Path(name))
        every = list(commands(Path(name)).items())
        measured = dict(every[row] for row in args.rows) if args.rows else dict(every)
        times: dict[str, list[tuple[float, float]]] = {title: [] for title in measured}
        for index in range(args.runs + 1):
            for title, command in measured.items():
                figures = time_command(command, environment)
                if index:  # the first round fills the caches and compiles Python's files
                    times[title].append(figures)
    print("| | CPU seconds, median (least-most) | wall seconds, median |\n| --- | --- | --- |")
    for title, figures in times.items():
        cpu, wall = zip(*figures, strict=True)
        print(f"| {title} | {median(cpu):.2f} ({min(cpu):.2f}-{max(cpu):.2f}) | {median(wall):.2f} |")


if __name__ == "__main__":
    main()
