"""Memory of a GPU that training a LoRA takes, foretold for the published models: `python -m benchmarks.lora_memory`.

Computed as --dry_run computes it, not measured: rank 16 on every linear layer of the blocks, one picture of 1024 x 1024
pixels, 333 tokens of text, bf16, AdamW, latents and text states from caches.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.forecast_check import LORA, UNET_ONLY, make_trainer
from benchmarks.host_memory import copy_pictures
from benchmarks.memory_table import MODELS
from benchmarks.true_size_files import write_files

GIB = 2**30
SETTINGS = {
    "plain": {},
    "--gradient_checkpointing_every_n_blocks=2": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_every_n_blocks": 2,
    },
    "--gradient_checkpointing": {"gradient_checkpointing": True},
    "and --base_weights_dtype=fp8": {"gradient_checkpointing": True, "base_weights_dtype": "fp8"},
    "and --base_weights_dtype=nf4": {"gradient_checkpointing": True, "base_weights_dtype": "nf4"},
    "and all blocks swapped": {"gradient_checkpointing": True, "blocks_to_swap": 99},
    "all blocks swapped, fp8": {"gradient_checkpointing": True, "base_weights_dtype": "fp8", "blocks_to_swap": 99},
}
_PARTS = ("weights", "what trains", "optimizer", "gradients and activations")


def table(
    models: Iterable[str], folder: Path, *, batch_size: int = 1, rank: int = 16, settings: Iterable[str] = SETTINGS
) -> Iterator[str]:
    """Lines of the table, in GiB."""
    import torch

    from library.training.forecast.forecast import Forecaster
    from library.training.forecast.ladder import with_values

    copy_pictures(folder)
    config = folder / "dataset.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = '{(folder / 'pictures').as_posix()}'\n"
    config.write_text(
        f"[[datasets]]\nresolution = 1024\nbatch_size = {batch_size}\ncaption_extension = '.txt'\n{subset}"
    )
    yield "| model | setting | weights | LoRA | optimizer | gradients, activations | in all | host |"
    yield "| --- " * 8 + "|"
    for name in models:
        own = ("--network_module=networks.lora", f"--network_dim={rank}", "--learning_rate=1e-4", *UNET_ONLY)
        where = (f"--dataset_config={config}", f"--output_dir={folder / 'out'}", "--mixed_precision=bf16")
        trainer = make_trainer(LORA, [*write_files(folder, name), *where, *own])
        forecaster = Forecaster(trainer, torch.device("cuda"))
        for words in settings:
            forecast = forecaster.of(with_values(trainer.options, SETTINGS[words]))
            training = forecast.training
            figures = [*(training.parts[part] for part in _PARTS), training.device, training.host]
            cells = [name, words, *(f"{figure / GIB:.1f}" for figure in figures)]
            yield f"| {' | '.join(cells)} |"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(SETTINGS))), help="settings, from 0")
    args = parser.parse_args(None if argv is None else list(argv))
    settings = [list(SETTINGS)[row] for row in args.rows]
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        for line in table(args.models, Path(folder), batch_size=args.batch, rank=args.rank, settings=settings):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
