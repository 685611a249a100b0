"""Train a small SD3 that draws coloured shapes, and write it in the layout of the published files.

    python -m examples.drawing_sd3.make FOLDER [--minutes 30] [--threads 2]

FOLDER gets sd3.safetensors with everything inside, the folders of the tokenizers, and drawings.png: what the model
draws. Its world is in draw.py. LoRAs can be trained on it whose pictures show what was learned.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.drawing_sd3.draw import SIDE, drawing
from examples.drawing_sd3.judge import Seen, look
from examples.drawing_sd3.pace import Pace
from examples.tiny_sd3.make import build_tiny_sd3
from examples.tiny_sd3.tokenizers import write_tokenizers
from library.tensorfile import write_tensors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL import Image
    from torch import Tensor, nn

    from examples.drawing_sd3.denoiser import Drawer
    from library.models.tokenizers import TokenizerSet

ENCODERS = ("clip_l", "clip_g", "t5xxl")
_VAE_SHARE = 0.3  # of the minutes
_UNTAUGHT = 1_000_000  # drawings from this number on are not trained with


@dataclass(frozen=True)
class Effort:
    """How long to train, and on how much.

    Attributes:
        vae_steps: Of the autoencoder, at most.
        steps: Of everything else, at most.
        minutes: For both together.
        num_pictures: To learn from.
        num_shown: To see what was learned.
    """

    vae_steps: int = 4000
    steps: int = 6000
    minutes: float = math.inf
    num_pictures: int = 5000
    num_shown: int = 64

    def paces(self) -> tuple[Pace, Pace]:
        """Of the autoencoder and of everything else."""
        seconds = 60 * self.minutes
        vae = Pace("autoencoder", self.vae_steps, _VAE_SHARE * seconds)
        return vae, Pace("model", self.steps, (1 - _VAE_SHARE) * seconds)


def make(folder: Path, *, seed: int = 0, effort: Effort = Effort()) -> Path:
    """Train and write the model.

    Args:
        folder: Made if it does not exist.
        seed: Of everything. The same seed and steps give the same model, up to rounding, unless the minutes run out.
        effort: How long.

    Returns:
        The file of the model. Beside it are the tokenizers and drawings.png.
    """
    from examples.drawing_sd3.autoencoder import build_autoencoder, train_autoencoder, training_pictures
    from examples.drawing_sd3.denoiser import Drawer, build_mmdit, lessons, train_drawer
    from library.models.tokenizers import load_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizers(folder)
    tokenizers = load_tokenizers(ENCODERS, tokenizer_dir=folder)
    vae_pace, pace = effort.paces()
    vae = build_autoencoder(seed)
    train_autoencoder(vae, training_pictures(seed, effort.num_pictures), seed, vae_pace)
    drawer = Drawer(build_mmdit(seed), random_encoders(seed))
    drawer = train_drawer(drawer, lessons(vae, tokenizers, seed, effort.num_pictures), seed, pace)
    model = folder / "sd3.safetensors"
    write_tensors(model, published(drawer, vae), {"modelspec.architecture": "stable-diffusion-3-medium"})
    show(drawer, vae, tokenizers, seed, effort.num_shown).save(folder / "drawings.png")
    return model


def random_encoders(seed: int) -> dict[str, nn.Module]:
    """The three text encoders of the tiny model, in float32."""
    from library.families.sd3.checkpoint import inspect_files, read_part
    from library.models.text_encoders import load_clip, load_t5

    with tempfile.TemporaryDirectory() as folder:
        files = inspect_files(build_tiny_sd3(folder, seed=seed, dtype="fp32").model)
        parts = {"clip_l": files.clip_l, "clip_g": files.clip_g, "t5xxl": files.t5xxl}
        tensors = {name: read_part(part) for name, part in parts.items() if part is not None}
        encoders: dict[str, nn.Module] = {name: load_clip(tensors[name], kind=name) for name in ENCODERS[:2]}
        encoders["t5xxl"] = load_t5(tensors["t5xxl"])
        copies = copy.deepcopy(encoders)  # the tensors lie in the file, which goes away
    copies["clip_l"].text_projection.requires_grad_(False)  # files have none: it stays the identity
    return copies


def published(drawer: Drawer, vae: AutoencoderKL) -> dict[str, Tensor]:
    """Every tensor under its name in a single file, in fp16."""
    import torch

    from library.models.vae_key_map import vae_from_diffusers

    parts = {"model.diffusion_model.": drawer.mmdit.state_dict()}
    parts["first_stage_model."] = vae_from_diffusers(vae.state_dict())
    for name, encoder in drawer.encoders.items():
        parts[f"text_encoders.{name}.transformer."] = encoder.state_dict()
    parts["text_encoders.clip_l.transformer."].pop("text_projection.weight")
    named = {prefix + name: tensor for prefix, tensors in parts.items() for name, tensor in tensors.items()}
    return {name: tensor.to(torch.float16).clone() for name, tensor in named.items()}


def show(drawer: Drawer, vae: AutoencoderKL, tokenizers: TokenizerSet, seed: int, count: int) -> Image.Image:
    """Have it draw captions, print how many come out right, and return the first 32 pictures as a grid."""
    from examples.drawing_sd3.denoiser import sample

    wanted = [drawing(seed, _UNTAUGHT + index)._replace(says_background=True) for index in range(count)]
    images = to_images(sample(drawer, vae, tokenizers, [what.caption for what in wanted], seed))
    seen = [look(image) for image in images]
    for trait in Seen._fields:
        right = sum(getattr(what, trait) == getattr(found, trait) for what, found in zip(wanted, seen, strict=True))
        print(f"{trait}: {right} of {count} as the caption says")
    return grid(images[:32])


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures in -1..1 [B, 3, H, W] to images."""
    from PIL import Image

    levels = ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture.numpy()) for picture in levels]


def grid(images: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Images of one size side by side, row by row."""
    from PIL import Image

    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * SIDE, index // columns * SIDE))
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train a small SD3 that draws coloured shapes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no longer than this; else by steps alone")
    parser.add_argument("--vae_steps", type=int, default=Effort.vae_steps)
    parser.add_argument("--steps", type=int, default=Effort.steps)
    parser.add_argument("--pictures", type=int, default=Effort.num_pictures, help="to learn from")
    parser.add_argument("--shown", type=int, default=Effort.num_shown, help="drawn at the end, to be judged")
    parser.add_argument("--threads", type=int, help="CPU threads; else as many as torch takes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    import torch

    torch.set_flush_denormal(True)  # they are slow; for the whole process, so that only a command may ask for it
    if args.threads:
        torch.set_num_threads(args.threads)
    effort = Effort(args.vae_steps, args.steps, args.minutes, args.pictures, args.shown)
    print(make(args.folder, seed=args.seed, effort=effort))


if __name__ == "__main__":
    main()
