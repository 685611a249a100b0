"""What `--fit` chooses for the published models and cards of usual sizes: `python -m benchmarks.fit_table`.

Computed from headers, as `--fit` does it, for a GPU that need not be there; nothing was measured on one. One picture of
1024 x 1024 pixels a step: a LoRA of rank 16 in the MMDiT alone, then the whole model in 16 bits with Adafactor stepping
inside the backward pass.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks.forecast_check import FULL, LORA, make_trainer
from benchmarks.memory_table import GIB, MODELS
from benchmarks.true_size_files import write_files
from library.errors import OptionError
from library.training.forecast.fitting import Fitting, flags_of
from library.training.forecast.forecast import Forecaster

SIDE = 1024  # pixels
CARDS = ("6GB", "8GB", "10GB", "12GB", "16GB", "24GB")
BF16 = ("--mixed_precision=bf16",)
RUNS = {
    LORA: ("--network_module=networks.lora", "--network_dim=16", "--network_train_unet_only", *BF16),
    FULL: (*BF16, "--full_bf16", "--optimizer_type=Adafactor", "--fused_backward_pass", "--max_grad_norm=0"),
}


def common_flags(folder: Path, name: str) -> list[str]:
    """Write a model without numbers and a picture with a caption; returns the flags that name them."""
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    Image.new("RGB", (SIDE, SIDE)).save(pictures / "gray.png")
    (pictures / "gray.txt").write_text("gray", encoding="utf-8")
    subset = f"[[datasets.subsets]]\nimage_dir = '{pictures.as_posix()}'\n"
    config = folder / "data.toml"
    config.write_text(f"[[datasets]]\nresolution = {SIDE}\ncaption_extension = '.txt'\n{subset}", encoding="utf-8")
    where = (f"--dataset_config={config}", f"--output_dir={folder / 'out'}", "--max_train_steps=10")
    return [*write_files(folder, name), *where]


def fitted(script: str, flags: Sequence[str], card: str) -> tuple[str, str, str]:
    """Cells of a row: what is added to a run's flags, and GiB of GPU and host then."""
    trainer = make_trainer(script, [*flags, *RUNS[script], f"--fit={card}"])
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


def table(script: str, models: Iterable[str], folder: Path) -> Iterator[str]:
    """Lines of the table; cards for which the same is chosen share a row."""
    yield "| model | `--fit` | adds | GPU, GiB | host, GiB |"
    yield "| --- " * 5 + "|"
    for name in models:
        flags = common_flags(folder, name)
        found = [(card, fitted(script, flags, card)) for card in CARDS]
        for cells, group in groupby(found, key=lambda pair: pair[1]):
            yield f"| {name} | {', '.join(f'`{card}`' for card, _ in group)} | {' | '.join(cells)} |"


def main(argv: Iterable[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    chosen = parser.parse_args(None if argv is None else list(argv))
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        for script, flags in RUNS.items():
            print(f"\n{script}.py {' '.join(flags)}\n")
            for line in table(script, chosen.models, Path(folder)):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
