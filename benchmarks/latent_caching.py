"""Images per second of filling the latent cache, against a plain loop over the same encoder in one thread.

    python -m benchmarks.latent_caching [--images 200] [--rounds 5]
    python -m benchmarks.latent_caching --encoder vae --images 20

Pictures are generated: smooth shapes of all sizes with grain, as JPEG of quality 90. Both variants read the same files
and write their own cache files; they take turns, folder by folder, in one process and with one torch thread.

- ours: what tools/cache_latents.py does between loading the encoder and its summary.
- plain loop: open, convert to RGB, resize (OpenCV, area), encode, save as safetensors, one picture after another.

The encoders: `vae` is the VAE of examples/tiny_sd3, which is a thousand times smaller than the real one and still takes
seconds a picture on one processor. `pool` takes the mean of each cell; it stands for an encoder on a GPU, beside which
decoding is what takes time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.tiny_sd3.make import build_tiny_sd3
from library.families.sd3.family import Sd3Family
from library.options.spec import parse_options
from library.training.cache_run import LatentCacheRun
from library.training.encoding.caching import LatentCaching, encode_pictures
from tools.cache_options import LATENT_CACHING_SCRIPT, LatentCachingOptions

QUALITY = 90
NUM_BASES = 4  # generated from scratch; the others are shifted and toned differently
GRAIN = 5.0  # deviation of the noise, of 255


@dataclass(frozen=True, kw_only=True)
class PoolFamily(Sd3Family):
    """SD3 with an encoder that costs next to nothing."""

    def load_vae(self, files: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Nothing."""
        return nn.Identity()

    def encode_images(self, vae: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
        """The mean of each cell, in as many channels as latents have."""
        cells = nn.functional.avg_pool2d(images, self.pixels_per_latent)
        return cells.mean(dim=1, keepdim=True).expand_as(noise) + 0.01 * noise


FAMILIES = {"pool": PoolFamily, "vae": Sd3Family}


class Times(NamedTuple):
    """What pictures took, in seconds of the clock and of processors."""

    wall: float
    cpu: float


class Caching(LatentCacheRun):
    """The tool's run, with a choice of encoders.

    Args:
        options: Of the tool.
        encoder: A key of FAMILIES.
    """

    def __init__(self, options: LatentCachingOptions, encoder: str) -> None:
        super().__init__(options)
        self.encoder = encoder

    def make_family(self) -> Sd3Family:
        """SD3, with the encoder asked for."""
        return FAMILIES[self.encoder].from_options(self.options)

    def make_caching(self) -> LatentCaching:
        """The last thing before the pictures are read."""
        caching = super().make_caching()
        self._cpu_start = time.process_time()
        return caching

    @property
    def times(self) -> Times:
        """From the first picture that is read to the last file that is written."""
        return Times(sum(report.seconds for report in self._reports), time.process_time() - self._cpu_start)


def base_pictures(side: int) -> list[np.ndarray]:
    """Pictures that cost a decoder about what photos do. Shape [side, side, 3], uint8."""
    pictures = []
    for seed in range(NUM_BASES):
        draw = np.random.default_rng(seed)
        total = np.zeros((side, side, 3), np.float32)
        for size in (4, 16, 64, 256):
            layer = draw.normal(size=(size, size, 3)).astype(np.float32) / size**0.6
            total += cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC)
        low, high = total.min(), total.max()
        grain = draw.normal(scale=GRAIN, size=(side, side, 1)).astype(np.float32)
        pictures.append(np.clip((total - low) / (high - low) * 255 + grain, 0, 255).astype(np.uint8))
    return pictures


def write_pictures(folders: list[Path], per_folder: int, side: int) -> int:
    """Fill the folders with distinct pictures and captions; returns the mean size of a file in bytes."""
    bases, num_bytes = base_pictures(side), 0
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for index in range(per_folder):
            serial = number * per_folder + index
            shifted = np.roll(bases[serial % NUM_BASES], (97 * serial, 61 * serial), axis=(0, 1))
            path = folder / f"{index:04d}.jpg"
            Image.fromarray(shifted).save(path, quality=QUALITY)
            path.with_suffix(".txt").write_text(f"picture {serial}")
            num_bytes += path.stat().st_size
    return num_bytes // (len(folders) * per_folder)


def fill_ours(folder: Path, model: Path, resolution: int, encoder: str) -> Times:
    """Of the tool."""
    config = folder / "dataset.toml"
    config.write_text(
        f"[[datasets]]\nresolution = {resolution}\ncaption_extension = '.txt'\n"
        f"[[datasets.subsets]]\nimage_dir = '{folder.as_posix()}'\n"
    )
    argv = [f"--pretrained_model_name_or_path={model}", f"--dataset_config={config}"]
    run = Caching(parse_options(LatentCachingOptions, argv, **LATENT_CACHING_SCRIPT), encoder)
    run.run()
    return run.times


def fill_plainly(folder: Path, family: Sd3Family, vae: nn.Module, resolution: int) -> Times:
    """Of the plain loop."""
    target = folder / "plain"
    target.mkdir()
    start, cpu_start = time.perf_counter(), time.process_time()
    for path in sorted(folder.glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        small = cv2.resize(pixels, (resolution, resolution), interpolation=cv2.INTER_AREA)
        images = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = encode_pictures(family, vae, images, [0])
        save_file({"latents": latents[0]}, target / f"{path.name}.safetensors")
    return Times(time.perf_counter() - start, time.process_time() - cpu_start)


def measure(side: int, encoder: str, options: argparse.Namespace, model: Path) -> tuple[list[Times], list[Times], int]:
    """Times for an image of ours and of the plain loop, one for each round, and the mean bytes of a picture."""
    per_folder = max(1, options.images // options.rounds)
    argv = [f"--pretrained_model_name_or_path={model}", "--dataset_config=none.toml"]
    family = FAMILIES[encoder].from_options(parse_options(LatentCachingOptions, argv, **LATENT_CACHING_SCRIPT))
    vae = family.load_vae(family.inspect(), torch.float32, torch.device("cpu"))
    ours, plain = [], []
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(number) for number in range(options.rounds)]
        num_bytes = write_pictures(folders, per_folder, side)
        for number, folder in enumerate(folders):
            for is_ours in (True, False) if number % 2 else (False, True):
                if is_ours:
                    times = fill_ours(folder, model, options.resolution, encoder)
                else:
                    cv2.setNumThreads(1)
                    times = fill_plainly(folder, family, vae, options.resolution)
                (ours if is_ours else plain).append(Times(*(seconds / per_folder for seconds in times)))
    return ours, plain, num_bytes


def main(argv: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="of each size, in all rounds together")
    parser.add_argument("--sides", type=int, nargs="*", default=[4096, 1024], help="of the pictures, in pixels")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--encoder", choices=sorted(FAMILIES), nargs="*", default=["pool"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(1)
    print("| pictures | encoder | plain loop: images/s | CPU s each | ours: images/s | CPU s each | ours / plain |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_sd3(folder).model
        for side in options.sides:
            for encoder in options.encoder:
                ours, plain, num_bytes = measure(side, encoder, options, model)
                ratios = sorted(theirs.wall / mine.wall for mine, theirs in zip(ours, plain, strict=True))
                figures = [
                    f"{1 / median(t.wall for t in x):.2f} | {median(t.cpu for t in x):.3f}" for x in (plain, ours)
                ]
                print(
                    f"| {side} px, {num_bytes / 1e6:.2f} MB | {encoder} | {' | '.join(figures)} "
                    f"| {median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
