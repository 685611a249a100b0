"""Make the tiny model that draws things in the right colours, from nothing, on a CPU: one command for all of it.

    python -m examples.tiny_sd.build FOLDER [--seed 0]

It trains the autoencoder, writes a model of random weights around it, trains that with fine_tune.py, and writes
FOLDER/base: the model, its tokenizer, and the loss of every step. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.tiny_sd.pictures import write_pictures
from examples.tiny_sd.start import ARCHITECTURE, write_start
from library.tensorfile import read_header, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = Path(__file__).resolve().parent.parent.parent
BASE = Path(__file__).resolve().parent / "base"
MODEL = "sd1_tiny"  # name of every model file
METADATA = "metadata.json"  # of the pictures, in the form of sd-scripts
_VAE_PREFIX = "first_stage_model."
_NOTE = 100  # steps


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        vae_steps: Of the autoencoder.
        decoder_steps: Of its decoder alone, after that, on what the model will draw.
        num_vae_pictures: For the autoencoder.
        num_pictures: For fine_tune.py.
        steps: Of fine_tune.py.
        rate: Its highest learning rate.
        batch: Pictures in its steps.
        seed: Of everything.
    """

    vae_steps: int = 900
    decoder_steps: int = 200
    num_vae_pictures: int = 1500
    num_pictures: int = 240
    steps: int = 600
    rate: float = 2e-3
    batch: int = 24
    seed: int = 0


def build(folder: Path, plan: Plan = Plan()) -> Path:
    """Do what is not done yet. Returns the finished model, FOLDER/base/sd1_tiny.safetensors."""
    vae = train_vae(folder / "vae", plan)
    model = folder / "start" / f"{MODEL}.safetensors"
    if not model.exists():
        write_start(model, vae, plan.seed)
    pictures = draw_pictures(folder / "pictures", plan)
    trained = train(folder / "trained", model, pictures, plan)
    return finish(folder / "base", trained)


def train_vae(folder: Path, plan: Plan) -> dict[str, Tensor]:
    """The autoencoder in the names of diffusers, rounded to what a file in fp16 keeps."""
    import torch

    from examples.tiny_sd.autoencoder import build_autoencoder, train_autoencoder, train_decoder, training_pictures
    from examples.tiny_sd.pictures import FEW

    result = folder / "vae.safetensors"
    if not result.exists():
        torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        vae = build_autoencoder(plan.seed)
        pictures = training_pictures(plan.seed, plan.num_vae_pictures)
        train_autoencoder(vae, pictures, plan.vae_steps, plan.seed, _Notes("autoencoder"))
        few = training_pictures(plan.seed, plan.num_pictures, FEW)
        train_decoder(vae, few, plan.decoder_steps, plan.seed, _Notes("decoder"))
        write_tensors(result, {name: tensor.half() for name, tensor in vae.state_dict().items()}, {"format": "pt"})
    return {name: tensor.float() for name, tensor in read_tensors(read_header(result)).items()}


class _Notes:
    """Prints the mean loss now and then."""

    def __init__(self, part: str) -> None:
        self.part, self.losses, self.begun = part, list[float](), time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        if step % _NOTE == 0:
            mean, seconds = sum(self.losses) / len(self.losses), time.monotonic() - self.begun
            print(f"{self.part}: step {step}, loss {mean:.4f}, {seconds:.0f} s", flush=True)
            self.losses.clear()


def draw_pictures(folder: Path, plan: Plan) -> Path:
    """The pictures with caption files, and a metadata file that says the captions too. Returns the folder."""
    metadata = folder / METADATA
    if not metadata.exists():
        captions = write_pictures(folder, plan.num_pictures, seed=plan.seed)
        entries = {name: {"caption": caption} for name, caption in captions.items()}
        metadata.write_text(json.dumps(entries, indent=0), encoding="utf-8", newline="\n")
    return folder


def train(folder: Path, model: Path, pictures: Path, plan: Plan) -> Path:
    """Run fine_tune.py, and return the file of the trained weights."""
    result = folder / f"{MODEL}.safetensors"
    if not result.exists():
        command = [sys.executable, *training_command(model, pictures, folder, plan)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    return result


def training_command(model: Path, pictures: Path, folder: Path, plan: Plan = Plan()) -> list[str]:
    """U-Net and text encoder are trained: fine_tune.py and its arguments."""
    return [
        "fine_tune.py",
        f"--pretrained_model_name_or_path={model.as_posix()}",
        f"--train_data_dir={pictures.as_posix()}",
        f"--in_json={(pictures / METADATA).as_posix()}",
        "--resolution=64",
        f"--train_batch_size={plan.batch}",
        "--caption_dropout_rate=0.1",
        "--cache_latents",
        "--train_text_encoder",
        f"--learning_rate={plan.rate}",
        "--optimizer_type=AdamW",
        "--optimizer_args",
        "betas=(0.9,0.99)",
        "fused=True",
        "--lr_scheduler=cosine",
        "--lr_warmup_steps=3%",
        f"--max_train_steps={plan.steps}",
        "--v_parameterization",
        "--zero_terminal_snr",
        "--save_precision=fp16",
        "--save_state_on_train_end",
        f"--output_dir={folder.as_posix()}",
        f"--output_name={MODEL}",
        f"--seed={plan.seed + 1}",
        "--max_data_loader_n_workers=0",
        "--no_metadata",
    ]


def finish(folder: Path, trained: Path) -> Path:
    """The folder that is kept: the model in fp16, its tokenizer, and losses.json with the loss of every step."""
    from examples.tiny_sd3.start import words
    from examples.tiny_sd3.tokenizers import write_clip_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{MODEL}.safetensors"
    tensors = {name: tensor.half() for name, tensor in read_tensors(read_header(trained)).items()}
    said = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
    write_tensors(result, tensors, {"modelspec.architecture": ARCHITECTURE, **said})
    write_clip_tokenizer(folder / "tokenizer", words())
    state = json.loads((trained.parent / f"{MODEL}-state" / "train_state.json").read_text(encoding="utf-8"))
    (folder / "losses.json").write_text(json.dumps(state["losses"], indent=0), encoding="utf-8", newline="\n")
    return result


def vae_of(model: Path) -> dict[str, Tensor]:
    """The autoencoder in a model file, in the names of diffusers: with it `write_start` makes the start model again."""
    from library.models.vae_key_map import vae_to_diffusers

    header = read_header(model)
    own = {name.removeprefix(_VAE_PREFIX): name for name in header.tensors if name.startswith(_VAE_PREFIX)}
    tensors = read_tensors(header, list(own.values()))
    return vae_to_diffusers({short: tensors[name].float() for short, name in own.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Build as the command line says."""
    parser = argparse.ArgumentParser(description="Make the tiny model that draws things in the right colours.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    args = parser.parse_args(argv)
    import torch

    torch.set_flush_denormal(True)  # they are slow; for the whole process, so that only a command may ask for it
    begun = time.monotonic()
    model = build(args.folder.resolve(), Plan(seed=args.seed))
    print(f"{model}, {(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
