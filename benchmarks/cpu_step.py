"""CPU seconds of a training step, against hand-written loops over the same model.

    python -m benchmarks.cpu_step [--widths tiny small] [--precisions no bf16] [--rounds 9]
    python -m benchmarks.cpu_step --widths mid --precisions no --rounds 5 --variants ours "plain loop"

Each row of the table is measured in this one process on one thread: the variants take turns, and a ratio is the median
over the rounds of the ratio within a round. CPU seconds, because a busy machine changes wall time by a factor.
The real step is the trainer's own: reading the caches, draws, loss, backward, clipping, optimizer, schedule.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from accelerate.state import AcceleratorState
from PIL import Image

from benchmarks.plain_loop import ALPHA, LEARNING_RATE, RANK, Example, frozen_step, lora_step
from examples.tiny_sd3.make import CONTEXT_WIDTH, POOLED_WIDTH, TinySd3, build_tiny_sd3
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.models.mmdit import MMDiT, MMDiTConfig
from library.options.spec import parse_options
from library.records import Batch
from library.tensorfile import write_tensors
from sd3_train_network import Sd3NetworkTrainer

DEPTHS = {"tiny": 2, "small": 6, "mid": 12}  # blocks; 64 channels for each
STEPS = {"tiny": 4, "small": 1, "mid": 1}  # steps in a round
WARM_UP = {"tiny": 2, "small": 2, "mid": 1}  # steps before the first round
SIDE = 512  # pixels: 1024 image tokens beside the 77 + 256 of the text
REAL, PLAIN, FROZEN, NAIVE = "ours", "plain loop", "frozen model", "naive LoRA"
NAMES = (REAL, PLAIN, FROZEN, NAIVE)
RATIOS = ((REAL, PLAIN), (REAL, FROZEN), (NAIVE, PLAIN))


def write_model(folder: Path, depth: int, side: int) -> TinySd3:
    """An MMDiT of `depth` blocks with random weights, and encoders and a VAE as small as possible."""
    files = build_tiny_sd3(folder, bundle=False, dtype="fp32")
    torch.manual_seed(0)
    config = MMDiTConfig(
        depth=depth, num_heads=depth, context_dim=CONTEXT_WIDTH, pooled_dim=POOLED_WIDTH, position_side=side // 16
    )
    state = MMDiT(config).state_dict()
    write_tensors(files.model, {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, {})
    return files


def write_dataset(folder: Path, side: int) -> Path:
    """Two pictures of noise with captions; returns the dataset configuration."""
    for index in range(2):
        pixels = torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a photo of noise", encoding="utf-8")
    config = folder / "dataset.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = '{folder.as_posix()}'\n"
    config.write_text(f"[[datasets]]\nresolution = {side}\nbatch_size = 1\ncaption_extension = '.txt'\n{subset}")
    return config


def start_trainer(folder: Path, depth: int, precision: str, *, side: int = SIDE) -> Sd3NetworkTrainer:
    """The trainer of sd3_train_network.py with complete caches, just before its loop."""
    files = write_model(folder, depth, side)
    arguments = {
        "pretrained_model_name_or_path": files.model,
        **{name: getattr(files, name) for name in ("clip_l", "clip_g", "t5xxl", "vae")},
        "dataset_config": write_dataset(folder, side),
        "output_dir": folder / "output",
        "network_module": "networks.lora_sd3",
        "network_dim": RANK,
        "network_alpha": ALPHA,
        "learning_rate": LEARNING_RATE,
        "max_train_steps": 100_000,
        "max_data_loader_n_workers": 0,
        "mixed_precision": precision,
        "seed": 1,
    }
    switches = ["network_train_unet_only", "cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"]
    line = [f"--{name}={value}" for name, value in arguments.items()] + [f"--{name}" for name in switches]
    trainer = Sd3NetworkTrainer(parse_options(Sd3NetworkOptions, line, **NETWORK_SCRIPT))
    trainer.check_options()
    trainer.plan_run()
    trainer.inspect_files()
    trainer.start()
    trainer.look_at_pictures()
    trainer.load()
    trainer.build_trainables()
    trainer.build_optimizer()
    trainer.build_loop()
    return trainer


def variants(trainer: Sd3NetworkTrainer, names: Sequence[str] = NAMES) -> dict[str, Callable[[], None]]:
    """One step of each that is named, over models that share the frozen weights."""
    batches = trainer.batches_from(0)
    batch = next(batches)
    assert batch.latents is not None and batch.text is not None
    conditioning = trainer.family.join_text(batch.text, trainer.denoiser)
    example = Example(
        batch.latents.float(),
        conditioning.context.to(trainer.weight_dtype),
        conditioning.pooled.to(trainer.weight_dtype),
    )
    trainer.denoiser.requires_grad_(False)

    def model() -> MMDiT:
        with torch.device("meta"):
            copy = MMDiT(trainer.files.config)
        copy.load_state_dict(trainer.denoiser.state_dict(), assign=True)
        return copy.requires_grad_(False)

    made: dict[str, Callable[[], Callable[[], None]]] = {
        REAL: lambda: partial(_real_step, trainer, batches),
        PLAIN: lambda: lora_step(model(), example),
        FROZEN: lambda: frozen_step(model(), example),
        NAIVE: lambda: lora_step(model(), example, is_naive=True),
    }
    return {name: made[name]() for name in names}


def _real_step(trainer: Sd3NetworkTrainer, batches: Iterator[Batch]) -> None:
    """As the loop makes it, with everything that watches."""
    trainer.optimizer_step([next(batches)])
    if (report := trainer.take_report()) is not None:
        trainer.watch.step(report)


def measure(
    steps: Mapping[str, Callable[[], None]], *, rounds: int, repeats: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """CPU seconds of one step of each variant in each round; the order changes from round to round."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warm_up):
            steps[name]()
    for index in range(rounds):
        shift = index % len(names)
        for name in (*names[shift:], *names[:shift]):
            start = time.process_time()
            for _ in range(repeats):
                steps[name]()
            seconds[name].append((time.process_time() - start) / repeats)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> str:
    """Median over the rounds, and the middle half of them; a dash where one of the two was not measured."""
    if name not in seconds or base not in seconds:
        return "-"
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
    quarter = len(ratios) // 4
    return f"{median(ratios):.2f} ({ratios[quarter]:.2f}-{ratios[-1 - quarter]:.2f})"


def measure_row(width: str, precision: str, rounds: int, names: Sequence[str] = NAMES, *, side: int = SIDE) -> str:
    """A row of the table."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = start_trainer(Path(folder), DEPTHS[width], precision, side=side)
        steps = variants(trainer, names)
        seconds = measure(steps, rounds=rounds, repeats=STEPS[width], warm_up=WARM_UP[width])
    cells = [f"{median(seconds[name]):.3f}" if name in seconds else "-" for name in NAMES]
    cells += [ratio(seconds, *pair) for pair in RATIOS]
    return " | ".join([f"| {width}", {"no": "fp32"}.get(precision, precision), *cells]) + " |"


def main(argv: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", choices=list(DEPTHS), default=["tiny", "small"])
    parser.add_argument("--precisions", nargs="+", choices=["no", "bf16"], default=["no", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", type=int, default=SIDE, help="of the picture, in pixels")
    parser.add_argument("--variants", nargs="+", choices=list(NAMES), default=list(NAMES))
    args = parser.parse_args(None if argv is None else list(argv))
    logging.getLogger("easel").setLevel("ERROR")
    torch.set_num_threads(1)
    print(f"| width | precision | {' | '.join(NAMES)} | ours / plain | ours / frozen | naive / plain |")
    print("| --- |" + " --- |" * 8)
    for width in args.widths:
        for precision in args.precisions:
            print(measure_row(width, precision, args.rounds, args.variants, side=args.side), flush=True)


if __name__ == "__main__":
    main()
