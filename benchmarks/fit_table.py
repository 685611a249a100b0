"""What `--fit` chooses for the published models and cards of usual sizes: `python -m benchmarks.fit_table`.

Computed from headers, as `--fit` does it, for a GPU that need not be there; nothing was measured on one. Batches of one
picture of 1024 x 1024 pixels, of SD1.5 of four of 512 x 512: a LoRA in the denoiser alone, then the whole model in 16
bits with Adafactor stepping inside the backward pass.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks.forecast_check import FULL, LORA, make_trainer
from benchmarks.memory_table import GIB, MODELS
from benchmarks.true_size_files import write_files
from benchmarks.unet_files import write_unet_file
from library.errors import OptionError
from library.training.forecast.fitting import Fitting, flags_of
from library.training.forecast.forecast import Forecaster

CARDS = ("6GB", "8GB", "10GB", "12GB", "16GB", "24GB")
SMALL_CARDS = ("4GB", "6GB", "8GB", "12GB", "16GB", "24GB")
BF16 = ("--mixed_precision=bf16",)
NETWORK = ("--network_module=networks.lora", "--network_train_unet_only", *BF16)
WHOLE = (*BF16, "--full_bf16", "--optimizer_type=Adafactor", "--fused_backward_pass", "--max_grad_norm=0")


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        script: Name of the script.
        models: That it is for.
        flags: Of its own.
        side: Of the pictures, in pixels.
        number: Of pictures in a batch.
        cards: That are asked about.
    """

    script: str
    models: tuple[str, ...]
    flags: tuple[str, ...]
    side: int = 1024
    number: int = 1
    cards: tuple[str, ...] = CARDS


RUNS = (
    Run(LORA, tuple(MODELS), (*NETWORK, "--network_dim=16")),
    Run(FULL, tuple(MODELS), WHOLE),
    Run("sdxl_train_network", ("SDXL",), (*NETWORK, "--network_dim=8"), cards=SMALL_CARDS),
    Run("sdxl_train", ("SDXL",), WHOLE, cards=SMALL_CARDS),
    Run("train_network", ("SD1.5",), (*NETWORK, "--network_dim=8"), side=512, number=4, cards=SMALL_CARDS),
)


def common_flags(run: Run, folder: Path, name: str) -> list[str]:
    """Write a model without numbers and pictures with captions; returns the flags that name them."""
    from PIL import Image

    pictures = folder / f"pictures{run.side}"
    pictures.mkdir(exist_ok=True)
    for index in range(run.number):
        Image.new("RGB", (run.side, run.side)).save(pictures / f"gray{index}.png")
        (pictures / f"gray{index}.txt").write_text("gray", encoding="utf-8")
    subset = f"[[datasets.subsets]]\nimage_dir = '{pictures.as_posix()}'\n"
    keys = f"resolution = {run.side}\nbatch_size = {run.number}\ncaption_extension = '.txt'\n"
    config = folder / f"data{run.side}.toml"
    config.write_text(f"[[datasets]]\n{keys}{subset}", encoding="utf-8")
    where = (f"--dataset_config={config}", f"--output_dir={folder / 'out'}", "--max_train_steps=10")
    return [*(write_files if name in MODELS else write_unet_file)(folder, name), *where]


def fitted(run: Run, flags: Sequence[str], card: str) -> tuple[str, str, str]:
    """Cells of a row: what is added to a run's flags, and GiB of GPU and host then."""
    trainer = make_trainer(run.script, [*flags, *run.flags, f"--fit={card}"])
    forecaster = Forecaster(trainer, torch.device("cuda"))
    fitting = Fitting.of(forecaster)
    assert fitting is not None
    options: Any = trainer.options
    try:
        chosen, _ = fitting.fit(options)
    except OptionError:
        return "does not fit", "", ""
    found = forecaster.of(chosen)
    added = [flag for flag in flags_of(options, chosen) if not flag.startswith("--cache_")]
    caches = ["caches"] if chosen.cache != options.cache else []
    words = ", ".join([*caches, *(f"`{flag}`" for flag in added)]) or "nothing"
    return words, f"{found.peak.device / GIB:.1f}", f"{found.host / GIB:.1f}"


def table(run: Run, models: Iterable[str], folder: Path) -> Iterator[str]:
    """Lines of the table; cards for which the same is chosen share a row."""
    yield "| model | `--fit` | adds | GPU, GiB | host, GiB |"
    yield "| --- " * 5 + "|"
    for name in models:
        flags = common_flags(run, folder, name)
        found = [(card, fitted(run, flags, card)) for card in run.cards]
        for cells, group in groupby(found, key=lambda pair: pair[1]):
            yield f"| {name} | {', '.join(f'`{card}`' for card, _ in group)} | {' | '.join(cells)} |"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(name for run in RUNS for name in run.models))
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--runs", nargs="+", type=int, default=list(range(len(RUNS))), help="tables, from 0")
    parser.add_argument("--cards", nargs="+", help="as 8GB; not given: those that are of interest")
    chosen = parser.parse_args(None if argv is None else list(argv))
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        for run in (RUNS[number] for number in chosen.runs):
            models = [name for name in run.models if name in chosen.models]
            if not models:
                continue
            print(f"\n{run.script}.py {' '.join(run.flags)}\n")
            for line in table(replace(run, cards=chosen.cards or run.cards), models, Path(folder)):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
