"""How well a ControlNet-LLLite follows a colour map: train one on the tiny model, draw, and count.

    python -m examples.tiny_sdxl.follow FOLDER [--steps 400] [--count 100]

Captions do not name the colour of the thing, and the maps are of pictures that were not trained with. Counted is the
share of pictures whose thing has the colour of the map, by the rule on pixels of examples/tiny_sd3/judge.py; and the
same with the network at multiplier 0, which is chance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.tiny_sd.painter import SEED
from examples.tiny_sd.pictures import large_thing
from examples.tiny_sdxl.build import BASE, MODEL, PROJECT
from examples.tiny_sdxl.pairs import colour_map, dataset_config, write_pairs
from examples.tiny_sdxl.words import without_colour

if TYPE_CHECKING:
    from torch import Tensor

    from examples.tiny_sdxl.painter import Painter

NUM_PAIRS = 120
_BATCH = 8
NAME = "colours"


def training_command(model: Path, folder: Path, *, steps: int, rate: float = 2e-3, seed: int = 1) -> list[str]:
    """sdxl_train_control_net_lllite.py and its arguments; draws its pairs into the folder."""
    write_pairs(folder, NUM_PAIRS)
    config = folder / "pairs.toml"
    config.write_text(dataset_config(folder, _BATCH), encoding="utf-8", newline="\n")
    return [
        "sdxl_train_control_net_lllite.py",
        f"--pretrained_model_name_or_path={model.as_posix()}",
        f"--dataset_config={config.as_posix()}",
        f"--output_dir={(folder / 'trained').as_posix()}",
        f"--output_name={NAME}",
        "--cond_emb_dim=16",
        "--network_dim=32",
        f"--learning_rate={rate}",
        "--lr_scheduler=cosine",
        f"--max_train_steps={steps}",
        f"--seed={seed}",
        "--v_parameterization",
        "--zero_terminal_snr",
        "--cache_latents",
        "--cache_text_encoder_outputs",
        "--max_data_loader_n_workers=0",
    ]


def following_share(painter: Painter, lllite: Path, multiplier: float, count: int) -> float:
    """Share of drawn pictures whose thing has the colour of its map, 0-1."""
    from examples.tiny_sd3.judge import judge
    from library.rng import stream_seed
    from networks.control_net_lllite import create_network_from_weights

    wanted = [large_thing(SEED, index) for index in range(count)]
    seeds = [stream_seed(SEED, "tiny_sdxl_noise", index) for index in range(count)]
    captions = [without_colour(what.caption, what.things[0].colour) for what in wanted]
    network = create_network_from_weights(multiplier, lllite, painter.unet)
    network.apply_to()
    network.set_condition(maps(count))
    try:
        pictures = painter.paint(captions, seeds)
    finally:
        network.detach_all()
    return sum(judge(picture, what).colour for picture, what in zip(pictures, wanted, strict=True)) / count


def maps(count: int) -> Tensor:
    """Colour maps of pictures that were not trained with. Shape [count, 3, 64, 64], in -1..1."""
    from examples.tiny_sd3.draw import as_tensor, draw, to_unit

    return to_unit(as_tensor([colour_map(draw(large_thing(SEED, index))) for index in range(count)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Train and count as the command line says."""
    parser = argparse.ArgumentParser(description="How well a ControlNet-LLLite follows a colour map.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=BASE / f"{MODEL}.safetensors")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    lllite = folder / "trained" / f"{NAME}.safetensors"
    if not lllite.exists():
        command = [sys.executable, *training_command(args.model.resolve(), folder, steps=args.steps)]
        subprocess.run(command, cwd=PROJECT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    from examples.tiny_sdxl.painter import Painter

    painter = Painter(args.model)
    for multiplier in (1.0, 0.0):
        share = following_share(painter, lllite, multiplier, args.count)
        print(f"multiplier {multiplier:g}: {share:.1%} of {args.count} things have the colour of the map")


if __name__ == "__main__":
    main()
