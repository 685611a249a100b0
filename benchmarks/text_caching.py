"""Captions per second of filling the text cache, against encoding the caption of one picture after another.

    python -m benchmarks.text_caching [--captions 100] [--rounds 4]

Both variants use the tiny encoders of examples/tiny_sd3 at full lengths (77 tokens for CLIP, 256 for T5), one torch
thread, and write a file for each caption that they encode; they take turns in one process.

- ours: what tools/cache_text_encoder_outputs.py does between loading the encoders and its summary: batches of 16,
  identical captions once, several files written at a time.
- one at a time: tokenize, encode, save as safetensors, for the caption of each picture.

*Distinct* has as many captions as pictures, *repeated* ten pictures to a caption.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from safetensors.torch import save_file

from examples.tiny_sd3.make import build_tiny_sd3
from library.families.sd3.family import Sd3Family
from library.options.spec import parse_options
from library.training.cache_run import TextCacheRun
from library.training.encoding.text_stage import TextStage
from tools.cache_options import TEXT_CACHING_SCRIPT, TextCachingOptions

WORDS = ("red", "green", "small", "old", "house", "cat", "river", "under", "beside", "bright", "cloudy", "painted")
REPEATS = 10
NUM_WORDS = 20


class Caching(TextCacheRun):
    """The tool's run."""

    def make_family(self) -> Sd3Family:
        """SD3."""
        return Sd3Family.from_options(self.options)

    @property
    def seconds(self) -> float:
        """From the first caption to the last file."""
        return sum(report.seconds for report in self._reports)


def caption(number: int) -> str:
    """The words of a caption, different for every number."""
    return " ".join([f"picture {number}", *(WORDS[(number + i * i) % len(WORDS)] for i in range(NUM_WORDS))])


def write_pictures(folder: Path, captions: list[str]) -> None:
    """A tiny picture for each caption."""
    folder.mkdir()
    picture = Image.new("RGB", (64, 64))
    for number, text in enumerate(captions):
        picture.save(folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text(text)


def fill_ours(folder: Path, model: Path) -> float:
    """Seconds of the tool."""
    config = folder / "dataset.toml"
    config.write_text(
        "[[datasets]]\nresolution = 64\ncaption_extension = '.txt'\n"
        f"[[datasets.subsets]]\nimage_dir = '{folder.as_posix()}'\n"
    )
    argv = [f"--pretrained_model_name_or_path={model}", f"--dataset_config={config}"]
    run = Caching(parse_options(TextCachingOptions, argv, **TEXT_CACHING_SCRIPT))
    run.run()
    return run.seconds


def fill_plainly(folder: Path, stage: TextStage, captions: list[str]) -> float:
    """Seconds of encoding one caption after another."""
    target = folder / "plain"
    target.mkdir()
    start = time.perf_counter()
    for number, text in enumerate(captions):
        states = stage.encode([text])
        save_file({name: state[0].contiguous() for name, state in states.items()}, target / f"{number}.safetensors")
    return time.perf_counter() - start


def make_stage(model: Path) -> TextStage:
    """The encoders and tokenizers, loaded."""
    argv = [f"--pretrained_model_name_or_path={model}", "--dataset_config=none.toml"]
    family = Sd3Family.from_options(parse_options(TextCachingOptions, argv, **TEXT_CACHING_SCRIPT))
    files, names, device = family.inspect(), family.encoder_names, torch.device("cpu")
    encoders = family.load_text_encoders(files, torch.float32, device, names)
    return TextStage(family, device, encoders, family.load_tokenizers(files, names))


def main(argv: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100, help="pictures of each round")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(1)
    print(
        "| captions | one at a time, captions/s | ours, captions/s | ours / one at a time |\n| --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as place:
        model = build_tiny_sd3(Path(place) / "model").model
        stage = make_stage(model)
        for title, repeats in (("distinct", 1), ("repeated", REPEATS)):
            ours, plain = [], []
            captions = [caption(number // repeats) for number in range(options.captions)]
            for number in range(options.rounds):
                folder = Path(place) / f"{title}{number}"
                write_pictures(folder, captions)
                for is_ours in (True, False) if number % 2 else (False, True):
                    seconds = fill_ours(folder, model) if is_ours else fill_plainly(folder, stage, captions)
                    (ours if is_ours else plain).append(len(captions) / seconds)
            ratios = sorted(mine / theirs for mine, theirs in zip(ours, plain, strict=True))
            print(
                f"| {title} | {median(plain):.1f} | {median(ours):.1f} "
                f"| {median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
