"""Make a tiny model of SDXL's layout that draws coloured things, on a CPU: one command for all of it.

    python -m examples.tiny_sdxl.build FOLDER [--seed 0] [--steps 1200] [--joint_steps 760]

Autoencoder and CLIP-L are those of examples/tiny_sd. sdxl_train.py trains the U-Net and both text encoders, then
the U-Net is trained together with a ControlNet-LLLite (joint.py says why). The result is FOLDER/base, a model in fp16
and its tokenizers. What is done is not done again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.tiny_sd.build import BASE as SMALL_BASE
from examples.tiny_sd.pictures import large_thing
from examples.tiny_sd3.draw import draw
from examples.tiny_sdxl.start import ARCHITECTURE, write_start, write_tokenizers
from examples.tiny_sdxl.words import without_colour
from library.tensorfile import read_header, read_tensors, write_tensors

PROJECT = Path(__file__).resolve().parent.parent.parent
BASE = Path(__file__).resolve().parent / "base"
MODEL = "sdxl_tiny"
NUM_PICTURES = 240
STEPS = 1200
JOINT_STEPS = 760
_UNNAMED = 3  # of so many captions one does not name the colour


def build(folder: Path, *, seed: int = 0, steps: int = STEPS, joint_steps: int = JOINT_STEPS) -> Path:
    """Do what is not done yet. Returns the finished model."""
    start = folder / "start" / f"{MODEL}.safetensors"
    if not start.exists():
        write_start(start, SMALL_BASE / "sd1_tiny.safetensors", seed)
    pictures = folder / "pictures"
    write_pictures(pictures, NUM_PICTURES, seed=seed)
    trained = folder / "trained" / f"{MODEL}.safetensors"
    if not trained.exists():
        command = [sys.executable, *training_command(start, pictures, trained.parent, steps=steps, seed=seed)]
        subprocess.run(command, cwd=PROJECT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    together = folder / "together" / f"{MODEL}.safetensors"
    if not together.exists():
        from examples.tiny_sdxl.joint import train_together

        write_tokenizers(trained.parent)
        together.parent.mkdir(parents=True, exist_ok=True)
        train_together(trained, together, steps=joint_steps, seed=seed, note=lambda line: print(line, flush=True))
    return finish(folder / "base", together)


def write_pictures(folder: Path, count: int, *, seed: int = 0) -> None:
    """Draw 0000.png with 0000.txt and so on; every third caption does not name the thing's colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = large_thing(seed, index)
        caption = what.caption if index % _UNNAMED else without_colour(what.caption, what.things[0].colour)
        draw(what).save(folder / f"{index:04}.png")
        (folder / f"{index:04}.txt").write_text(caption + "\n", encoding="utf-8", newline="\n")


def training_command(model: Path, pictures: Path, folder: Path, *, steps: int = STEPS, seed: int = 0) -> list[str]:
    """sdxl_train.py and its arguments."""
    rate = 2e-3
    return [
        "sdxl_train.py",
        f"--pretrained_model_name_or_path={model.as_posix()}",
        f"--dataset_config={write_config(folder, pictures).as_posix()}",
        "--cache_latents",
        "--train_text_encoder",
        f"--learning_rate={rate}",
        f"--learning_rate_te1={rate / 2}",
        f"--learning_rate_te2={rate / 2}",
        "--optimizer_type=AdamW",
        "--optimizer_args",
        "betas=(0.9,0.99)",
        "fused=True",
        "--lr_scheduler=cosine",
        "--lr_warmup_steps=3%",
        f"--max_train_steps={steps}",
        "--v_parameterization",
        "--zero_terminal_snr",
        "--save_precision=fp16",
        f"--output_dir={folder.as_posix()}",
        f"--output_name={MODEL}",
        f"--seed={seed + 1}",
        "--max_data_loader_n_workers=0",
        "--no_metadata",
    ]


def write_config(folder: Path, pictures: Path) -> Path:
    """The dataset file of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / "dataset.toml"
    path.write_text(
        "[[datasets]]\nresolution = 64\nbatch_size = 24\n\n[[datasets.subsets]]\n"
        f"image_dir = {pictures.as_posix()!r}\ncaption_extension = '.txt'\ncaption_dropout_rate = 0.1\n",
        encoding="utf-8",
        newline="\n",
    )
    return path


def finish(folder: Path, trained: Path) -> Path:
    """The folder that is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{MODEL}.safetensors"
    tensors = {name: tensor.half() for name, tensor in read_tensors(read_header(trained)).items()}
    write_tensors(result, tensors, {"modelspec.architecture": ARCHITECTURE})
    write_tokenizers(folder)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Build as the command line says."""
    parser = argparse.ArgumentParser(description="Make the tiny model of SDXL's layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--joint_steps", type=int, default=JOINT_STEPS)
    args = parser.parse_args(argv)
    print(build(args.folder.resolve(), seed=args.seed, steps=args.steps, joint_steps=args.joint_steps))


if __name__ == "__main__":
    main()
