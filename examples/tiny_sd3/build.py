"""Make the small model that draws, from nothing, on a CPU: one command for all of it.

    python -m examples.tiny_sd3.build FOLDER [--threads 2] [--seed 0]

It draws the pictures, trains the autoencoder, writes a model of random weights around it, trains that with
sd3_train.py, and writes FOLDER/base: the model, its tokenizers, a log and a
table of how well it draws. What is done is not done again: after a break the same command goes on where it was.
"""

from __future__ import annotations

import argparse
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

from examples.tiny_sd3.pictures import write_pictures
from examples.tiny_sd3.start import ARCHITECTURE, SHORT, write_short_tokenizers, write_start
from examples.tiny_sd3.training_log import model_lines, vae_lines, write_log
from library.tensorfile import read_header, read_tensors, write_tensors

if TYPE_CHECKING:
    from examples.tiny_sd3.autoencoder import Course

PROJECT = Path(__file__).resolve().parent.parent.parent
MODEL = "sd3_tiny"  # name of every model file
_SAVE_VAE = 500  # steps
_NOTE_VAE = 100


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        num_pictures: For sd3_train.py.
        num_vae_pictures: For the autoencoder.
        vae_steps: Of the autoencoder.
        decoder_steps: Of its decoder alone, after that.
        steps: Of sd3_train.py.
        rate: Its highest learning rate.
        batch: Pictures in its steps.
        save_every: Steps between its states.
        num_judged: Pictures in each group of the table of quality; 0 leaves it out.
        seed: Of everything.
        threads: Of the CPU.
    """

    num_pictures: int = 20000
    num_vae_pictures: int = 12000
    vae_steps: int = 10000
    decoder_steps: int = 3000
    steps: int = 8500
    rate: float = 1.5e-3
    batch: int = 64
    save_every: int = 500
    num_judged: int = 200
    seed: int = 0
    threads: int = 2


def build(folder: Path, plan: Plan = Plan()) -> Path:
    """Do what is not done yet. Returns the finished model, FOLDER/base/sd3_tiny.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_pictures(folder / "pictures", plan)
    vae = train_vae(folder / "vae", plan)
    model = start(folder / "start", vae, plan)
    trained = train(folder / "trained", model, folder / "pictures", plan)
    log = vae_lines(folder / "vae" / "losses.csv") + model_lines(trained.parent, MODEL)
    return finish(folder / "base", trained, log, plan)


def draw_pictures(folder: Path, plan: Plan) -> None:
    """The pictures in a folder of the name that --train_data_dir wants: once in an epoch."""
    done = folder / "done"
    if not done.exists():
        write_pictures(folder / "1_world", plan.num_pictures, seed=plan.seed)
        done.touch()


def train_vae(folder: Path, plan: Plan) -> Path:
    """The autoencoder, then its decoder alone. Returns its file, in float32 and the names of diffusers."""
    import torch

    from examples.tiny_sd3.autoencoder import Course, build_autoencoder

    result = folder / "vae.safetensors"
    if not result.exists():
        torch.set_num_threads(plan.threads)
        folder.mkdir(exist_ok=True)
        vae = build_autoencoder(plan.seed)
        _run_course(Course(vae, plan.vae_steps), folder, plan)
        if plan.decoder_steps:
            course = Course(vae, plan.decoder_steps, name="tiny_sd3_decoder", has_encoder=False)
            _run_course(course, folder, plan)
        write_tensors(result, {name: tensor.clone() for name, tensor in vae.state_dict().items()}, {"format": "pt"})
    return result


def _run_course(course: Course, folder: Path, plan: Plan) -> None:
    """Train to its end, from its last state if there is one; losses go to losses.csv."""
    from examples.tiny_sd3.autoencoder import signal_to_noise, train_autoencoder, training_pictures

    state, log = folder / f"{course.name}.pt", folder / "losses.csv"
    if state.exists():
        course.load(state)
    if course.step == course.num_steps:
        return
    _forget_lines(log, course)
    losses: list[float] = []

    def after_step(loss: float) -> None:
        losses.append(loss)
        if course.step % _NOTE_VAE == 0 or course.step == course.num_steps:
            line = f"{course.name},{course.step},{sum(losses) / len(losses):.5f},{course.seconds:.0f}"
            losses.clear()
            print(line, flush=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if course.step % _SAVE_VAE == 0 or course.step == course.num_steps:
            course.save(state)

    train_autoencoder(course, training_pictures(plan.seed, plan.num_vae_pictures), plan.seed, after_step)
    decibels = signal_to_noise(course.vae, training_pictures(plan.seed + 1000, min(256, plan.num_vae_pictures)))
    print(f"{course.name}: {decibels:.1f} dB on pictures that were not trained", flush=True)


def _forget_lines(log: Path, course: Course) -> None:
    """Take out what was told after the state that the course goes on from."""
    if log.exists():
        lines = [line.split(",") for line in log.read_text(encoding="utf-8").splitlines()]
        kept = [line for line in lines if line[0] != course.name or int(line[1]) <= course.step]
        log.write_text("".join(",".join(line) + "\n" for line in kept), encoding="utf-8")


def start(folder: Path, vae: Path, plan: Plan) -> Path:
    """The model of random weights around the autoencoder."""
    model = folder / f"{MODEL}.safetensors"
    if not model.exists():
        write_start(model, read_tensors(read_header(vae)), plan.seed)
    return model


def train(folder: Path, model: Path, pictures: Path, plan: Plan) -> Path:
    """Run sd3_train.py, and return the file of the averaged weights."""
    result = folder / f"{MODEL}-ema.safetensors"
    if not result.exists():
        command = [sys.executable, *training_command(model, pictures, folder, plan)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}
        subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    return result


def training_command(model: Path, pictures: Path, folder: Path, plan: Plan) -> list[str]:
    """The MMDiT and all three encoders are trained: sd3_train.py and its arguments."""
    return [
        "sd3_train.py",
        f"--pretrained_model_name_or_path={model.resolve()}",
        f"--t5xxl_max_token_length={SHORT}",
        f"--train_data_dir={pictures.resolve()}",
        "--caption_extension=.txt",
        "--resolution=64",
        f"--train_batch_size={plan.batch}",
        "--caption_dropout_rate=0.1",
        "--cache_latents",
        f"--vae_batch_size={plan.batch}",
        "--no_half_vae",
        "--train_text_encoder",
        "--train_t5xxl",
        "--save_clip",
        "--save_t5xxl",
        f"--learning_rate={plan.rate}",
        "--optimizer_type=AdamW",
        "--optimizer_args",
        "weight_decay=0.01",
        "betas=(0.9,0.99)",
        "fused=True",
        "--lr_scheduler=cosine",
        "--lr_warmup_steps=2%",
        f"--max_train_steps={plan.steps}",
        "--ema_decay=0.999",
        "--mixed_precision=bf16",
        "--weighting_scheme=logit_normal",
        "--save_precision=fp16",
        "--save_state",
        f"--save_every_n_steps={plan.save_every}",
        f"--save_last_n_steps_state={plan.save_every}",
        f"--output_dir={folder.resolve()}",
        f"--output_name={MODEL}",
        f"--seed={plan.seed + 1}",
        "--max_data_loader_n_workers=0",
        "--resume=auto",
    ]


def finish(folder: Path, model: Path, log: Sequence[str], plan: Plan) -> Path:
    """The folder that is shipped: the model, its tokenizers, the log and the table of quality."""
    folder.mkdir(exist_ok=True)
    result = folder / f"{MODEL}.safetensors"
    write_short_tokenizers(folder)
    write_tensors(result, read_tensors(read_header(model)), {"modelspec.architecture": ARCHITECTURE})
    write_log(folder / "training_log.txt", log, plan)
    if plan.num_judged:
        from examples.tiny_sd3.painter import GUIDANCE, STEPS, Painter
        from examples.tiny_sd3.quality import measure, table

        found = measure(Painter(result), plan.num_judged, steps=STEPS, guidance=GUIDANCE)
        (folder / "quality.md").write_text(table(found) + "\n", encoding="utf-8")
        print(table(found))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Build as the command line says."""
    parser = argparse.ArgumentParser(description="Make the small model that draws, from nothing.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=Plan.threads, help="of the CPU")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    args = parser.parse_args(argv)
    import torch

    torch.set_flush_denormal(True)  # they are slow; for the whole process, so that only a command may ask for it
    begun = time.monotonic()
    print(build(args.folder, Plan(seed=args.seed, threads=args.threads)))
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
