"""Forecasts of host memory against what real trainings take on the CPU: `python -m benchmarks.forecast_check`.

Every row is two processes: one that makes the forecast, as --dry_run does, and one that trains two steps on a random
model and is watched. Without a GPU all memory is host memory, so one number tells of weights, gradients, optimizer and
activations together.

The C library of Linux keeps pieces of up to 32 MB that are freed, of which small models have many, for later; how much
that comes to is chance, and on a GPU torch's own allocator is in its place. So it is told to give back what is freed
(MALLOC_MMAP_THRESHOLD_). --as-it-is adds a column without that.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.host_memory import copy_pictures, measure
from benchmarks.sized_model import ModelSize, SizedModel, build_model

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
GOAL = 0.15  # of what is measured
GIVE_BACK = ("env", "MALLOC_MMAP_THRESHOLD_=131072")  # where it begins; given, it stays there
CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
UNET_ONLY = ("--network_train_unet_only", *CACHED)
LORA, FULL = "sd3_train_network", "sd3_train"
SIZE = ModelSize(denoiser=(640, 8), clip_l=(256, 4), clip_g=(512, 6), t5xxl=(768, 6))
TINY = ModelSize(denoiser=(64, 1), clip_l=(64, 1), clip_g=(128, 1), t5xxl=(256, 1))
WIDE = ModelSize(denoiser=(1536, 2), clip_l=(192, 1), clip_g=(320, 1), t5xxl=(768, 1))


@dataclass(frozen=True)
class Setting:
    """A training.

    Attributes:
        words: For the table.
        script: Name of the script.
        flags: Of its own.
        side: Of the pictures, in pixels.
        size: Of the model.
    """

    words: str
    script: str
    flags: tuple[str, ...] = ()
    side: int = 256
    size: ModelSize = SIZE

    def arguments(self, model: Sequence[str], folder: Path) -> list[str]:
        """The command line."""
        config = folder / f"dataset{self.side}.toml"
        subset = f"[[datasets.subsets]]\nimage_dir = '{(folder / 'pictures').as_posix()}'\n"
        keys = f"resolution = {self.side}\nbatch_size = 2\ncaption_extension = '.txt'\n"
        config.write_text(f"[[datasets]]\n{keys}{subset}", encoding="utf-8")
        common = (f"--dataset_config={config}", f"--output_dir={folder / 'out'}", "--overwrite", "--seed=1")
        size = ("--max_train_steps=2", "--max_data_loader_n_workers=0", "--t5xxl_max_token_length=77")
        own = ("--network_module=networks.lora", "--network_dim=16") if self.script == LORA else ()
        return [*model, *common, *size, *own, "--learning_rate=1e-4", *self.flags]


BF16 = ("--mixed_precision=bf16", "--full_bf16")
FUSED = ("--optimizer_type=Adafactor", "--fused_backward_pass", "--max_grad_norm=0")
SETTINGS = (
    Setting("LoRA", LORA, UNET_ONLY),
    Setting("LoRA, --gradient_checkpointing", LORA, (*UNET_ONLY, "--gradient_checkpointing")),
    Setting("LoRA, --base_weights_dtype=int8", LORA, (*UNET_ONLY, "--base_weights_dtype=int8")),
    Setting("whole model, AdamW, float32", FULL, CACHED, side=128),
    Setting("whole model, --full_bf16, Adafactor, --fused_backward_pass", FULL, (*CACHED, *BF16, *FUSED), size=WIDE),
    Setting("LoRA with CLIP, encoders and VAE live", LORA, ("--gradient_checkpointing",)),
)


@dataclass(frozen=True)
class Row:
    """Bytes that were foretold and that were measured.

    Attributes:
        as_it_is: Measured without a word to the C library; 0 where it was not.
    """

    foretold: int
    measured: int
    as_it_is: int = 0

    @property
    def error(self) -> float:
        """Of the forecast, as a share of what was measured."""
        return self.foretold / self.measured - 1


def predict(script: str, arguments: Sequence[str]) -> int:
    """Bytes of host memory of a training, in this process."""
    from library.training.forecast.forecast import Forecaster

    trainer = make_trainer(script, arguments)
    return Forecaster(trainer).of(trainer.options).host


_FAMILIES = {  # script: package of its options, class and texts there, class of its trainer
    LORA: ("sd3", "Sd3NetworkOptions", "NETWORK_SCRIPT", "Sd3NetworkTrainer"),
    FULL: ("sd3", "Sd3FullOptions", "FULL_SCRIPT", "Sd3FullTrainer"),
    "sdxl_train_network": ("sdxl", "SdxlNetworkOptions", "SDXL_NETWORK_SCRIPT", "SdxlNetworkTrainer"),
    "sdxl_train": ("sdxl", "SdxlFullOptions", "SDXL_FULL_SCRIPT", "SdxlFullTrainer"),
    "train_network": ("sd", "SdNetworkOptions", "SD_NETWORK_SCRIPT", "SdNetworkTrainer"),
}


def make_trainer(script: str, arguments: Sequence[str]) -> Any:
    """A trainer that knows its data and the headers of its files."""
    from library.options.spec import parse_options

    family, own, texts, trainer_class = _FAMILIES[script]
    place = importlib.import_module(f"library.families.{family}.options")
    options: Any = parse_options(getattr(place, own), arguments, **getattr(place, texts))
    trainer = getattr(importlib.import_module(script), trainer_class)(options)
    with trainer.continuation:
        trainer.check_options()
        trainer.plan_run()
        trainer.inspect_files()
    return trainer


def check(setting: Setting, model: SizedModel, folder: Path, *, is_as_it_is: bool = False) -> Row:
    """The numbers of a row."""
    arguments = setting.arguments(model.flags(), folder)
    command = [sys.executable, "-m", "benchmarks.forecast_check", "--predict", setting.script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    foretold = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    training = [sys.executable, f"{setting.script}.py", *arguments]
    measured, plain = measure([*GIVE_BACK, *training]), measure(training) if is_as_it_is else None
    return Row(int(foretold.stdout.split()[-1]), measured.whole, plain.whole if plain else 0)


def table(settings: Iterable[Setting], folder: Path, *, is_as_it_is: bool = False) -> Iterator[str]:
    """Lines of the table."""
    import torch

    models: dict[ModelSize, SizedModel] = {}
    copy_pictures(folder)
    extra = ("as it is, MiB",) if is_as_it_is else ()
    yield f"| {' | '.join(('training', 'forecast, MiB', 'measured, MiB', 'error', *extra))} |"
    yield "| --- " * (4 + len(extra)) + "|"
    for setting in settings:
        if setting.size not in models:
            models[setting.size] = build_model(folder / f"model{len(models)}", setting.size, torch.float32)
        row = check(setting, models[setting.size], folder, is_as_it_is=is_as_it_is)
        plain = f" {row.as_it_is // MIB:,} |" if is_as_it_is else ""
        yield f"| {setting.words} | {row.foretold // MIB:,} | {row.measured // MIB:,} | {row.error:+.1%} |{plain}"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the table, or one forecast."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--predict"]:
        logging.disable(logging.CRITICAL)
        print(predict(arguments[1], arguments[2:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(SETTINGS))), help="numbers, from 0")
    parser.add_argument("--sizes", choices=["true", "tiny"], default="true", help="tiny: the same code at small widths")
    parser.add_argument("--as-it-is", action="store_true", help="also measure without a word to the C library")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        chosen = [SETTINGS[row] for row in args.rows]
        if args.sizes == "tiny":
            chosen = [replace(setting, size=TINY, side=64) for setting in chosen]
        for line in table(chosen, Path(folder), is_as_it_is=args.as_it_is):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
