"""What it brings a captioner that pictures are decoded while it works: threads against a serial loop, in one run.

    python -m benchmarks.captioning [--pictures 48] [--rounds 7] [--batch_size 4] [--width 256] [--gpu_ms 0]

The captioner is a BLIP with random weights, which draws captions of 12 tokens; --width sets how long it computes. It
takes the processors that decoding needs too. With --gpu_ms it computes nothing and waits that long for each picture
instead, so that the processors are free, as beside a GPU: a simulation. Pictures and figures are those of
benchmarks/decode_overlap.py.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.decode_overlap import Loop, make_pictures, measure

NUM_TOKENS = 12
FIRST_WORD = 5


def captioning_loop(folder: Path, pictures: Path, *, batch_size: int, width: int, gpu_ms: float) -> Loop:
    """Everything that the captioner does between loading and its summary."""
    from library.options.spec import parse_options
    from library.preparing.captioning.run import CaptioningRun, Progress
    from library.preparing.options.captioning import CAPTIONING_SCRIPT, CaptioningOptions

    make_captioner(folder, width)
    names = {path: path.name for path in sorted(pictures.iterdir())}
    arguments = [str(pictures), f"--model={folder}", f"--batch_size={batch_size}", "--device=cpu"]
    arguments += [f"--max_length={NUM_TOKENS}", f"--min_length={NUM_TOKENS}"]
    captioner = CaptioningRun(parse_options(CaptioningOptions, arguments, **CAPTIONING_SCRIPT)).load()
    if gpu_ms:
        captioner = replace(captioner, model=waiting_model(gpu_ms))

    def loop(num_threads: int | None) -> float:
        threads = [] if num_threads is None else [f"--max_data_loader_n_workers={num_threads}"]
        run = CaptioningRun(parse_options(CaptioningOptions, [*arguments, *threads], **CAPTIONING_SCRIPT))
        start = time.perf_counter()
        run.caption(captioner, names, Progress())
        return time.perf_counter() - start

    return loop


def waiting_model(gpu_ms: float) -> Any:
    """Takes its time as a model on a GPU would, and says one word over and over."""
    import torch

    def generate(pixel_values: torch.Tensor, **rest: Any) -> torch.Tensor:
        time.sleep(gpu_ms / 1000 * len(pixel_values))
        return torch.full((len(pixel_values), NUM_TOKENS), FIRST_WORD)

    return SimpleNamespace(generate=generate, generation_config=SimpleNamespace(eos_token_id=None))


def make_captioner(folder: Path, width: int) -> None:
    """A BLIP that sees 384 x 384 pixels in patches of 32, with few layers."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(2000)))
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**sizes, **ends, "vocab_size": len(words), "num_hidden_layers": 2, "encoder_hidden_size": width}
    eye = {**sizes, "num_hidden_layers": 6, "image_size": 384, "patch_size": 32}
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=eye)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(), tokenizer).save_pretrained(folder)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pictures", 48), ("rounds", 7), ("batch_size", 4), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gpu_ms", type=float, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, model = Path(folder) / "pictures", Path(folder) / "model"
        pictures.mkdir()
        make_pictures(pictures, asked.pictures)
        loop = captioning_loop(model, pictures, batch_size=asked.batch_size, width=asked.width, gpu_ms=asked.gpu_ms)
        # The pictures' folder gets caption files, which are no pictures: the loop goes through those it has listed.
        measure(loop, asked.rounds)


if __name__ == "__main__":
    main()
