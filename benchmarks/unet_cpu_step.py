"""CPU seconds of a LoRA step of a U-Net, against hand-written loops: `python -m benchmarks.unet_cpu_step`.

A U-Net with the levels and kinds of blocks of SDXL, at a fraction of its width; LoRA of rank 8 beside all layers of its
attention blocks, float32, batch 1, one thread. Variants take turns, and a ratio is formed within a round.

- ours: the trainer's own step (`unfiled_training.py`): draws, loss, backward, clipping, AdamW, schedule, what watches.
- plain loop: the same U-Net, LoRA as one autograd function, clipping, fused AdamW (`plain_loop.py`).
- diffusers: diffusers' own U-Net in that same loop.
- naive LoRA: the plain loop with `layer(x) + up(down(x)) * scale`.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from diffusers import UNet2DConditionModel

from benchmarks.cpu_step import measure, ratio
from benchmarks.plain_loop import lora_step
from benchmarks.random_unet import outline
from benchmarks.unet_loops import attention_layers, random_example
from benchmarks.unet_sizes import MID_UNET, TINY_UNETS, UnetSize
from benchmarks.unet_subject import UnetSubject
from benchmarks.unfiled_training import build_training

SIZES = {"tiny": TINY_UNETS["SDXL"], "mid": MID_UNET}
RANK = 8
OURS, PLAIN, THEIRS, NAIVE = "ours", "plain loop", "diffusers", "naive LoRA"
NAMES = (OURS, PLAIN, THEIRS, NAIVE)
RATIOS = ((OURS, PLAIN), (OURS, THEIRS), (NAIVE, PLAIN))


def variants(folder: Path, size: UnetSize, side: int, names: Sequence[str] = NAMES) -> dict[str, Callable[[], None]]:
    """One step of each that is named, over models that share the frozen weights.

    Args:
        folder: Empty.
        size: Of the U-Net.
        side: Of the picture, in pixels.
        names: Of the variants.
    """
    flags = ["--mixed_precision=no", f"--network_dim={RANK}", "--learning_rate=1e-4"]
    trainer = build_training(folder, UnetSubject(size), flags, side=side, batch=1, is_network=True)
    weights = {name: tensor for name, tensor in trainer.denoiser.state_dict().items()}
    example = random_example(size, side=side, batch=1, dtype=torch.float32, device=torch.device("cpu"))

    def loop(empty: Callable[[], UNet2DConditionModel], *, is_naive: bool = False) -> Callable[[], None]:
        model = empty()
        model.load_state_dict(weights, assign=True)
        model.requires_grad_(False).train()
        return lora_step(model, example, rank=RANK, layers=attention_layers(model), is_naive=is_naive)

    made: dict[str, Callable[[], Callable[[], None]]] = {
        OURS: lambda: partial(trainer.one_step, trainer.batches_from(0)),
        PLAIN: lambda: loop(lambda: outline(size)),
        THEIRS: lambda: loop(lambda: _their_outline(size)),
        NAIVE: lambda: loop(lambda: outline(size), is_naive=True),
    }
    return {name: made[name]() for name in names}


def _their_outline(size: UnetSize) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**size.config())


def main(argv: Iterable[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=list(SIZES), default="mid")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=list(NAMES), default=list(NAMES))
    given = parser.parse_args(None if argv is None else list(argv))
    logging.getLogger("easel").setLevel("ERROR")
    torch.set_num_threads(1)
    print(f"| width | {' | '.join(NAMES)} | {' | '.join(' / '.join(pair) for pair in RATIOS)} |")
    print("| --- |" + " --- |" * (len(NAMES) + len(RATIOS)))
    with tempfile.TemporaryDirectory() as folder:
        steps = variants(Path(folder), SIZES[given.width], given.side, given.variants)
        seconds = measure(steps, rounds=given.rounds, repeats=1, warm_up=1)
    cells = [f"{median(seconds[name]):.3f}" if name in seconds else "-" for name in NAMES]
    print(f"| {given.width} | {' | '.join((*cells, *(ratio(seconds, *pair) for pair in RATIOS)))} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
