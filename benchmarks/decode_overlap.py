"""What it brings that pictures are decoded while the model works: threads against a serial loop, in one run.

    python -m benchmarks.decode_overlap tags|captions [--pictures 48] [--rounds 7] [--batch_size 4] [--gpu_ms 0]

Pictures are generated JPEGs of 1 to 4 megapixels. Both variants go through the same files with the same model, in
turns, and differ in nothing but --max_data_loader_n_workers: 0 decodes between batches, not set decodes in threads.
What is told is the time of the loop without loading, also that of all processors, and the median of the ratios of
neighbours.

- tags: a tagger as a graph of convolutions.
- captions: a BLIP with random weights, which draws captions of 12 tokens.

--width sets how long they compute. They take the processors that decoding needs too. With --gpu_ms they compute nothing
and wait that long for each picture instead, so that the processors are free, as beside a GPU: a simulation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

Loop = Callable[[int | None], float]
"""Goes through all pictures with so many threads; seconds."""

SIZES = ((1024, 1024), (1216, 832), (1600, 1200), (2048, 1536), (2400, 1600))
NUM_TAGS = 1000
SIDE = 448
NUM_TOKENS = 12
FIRST_WORD = 5
WIDTHS = {"tags": 128, "captions": 256}


def make_pictures(folder: Path, number: int) -> None:
    """JPEGs that look like photographs to a decoder: smooth shapes with grain."""
    random = np.random.default_rng(0)
    for index in range(number):
        small = Image.fromarray(random.integers(0, 255, (12, 12, 3), np.uint8))
        pixels = np.asarray(small.resize(SIZES[index % len(SIZES)], Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, 5, pixels.shape)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{index:04}.jpg", quality=90)


def tagging_loop(folder: Path, pictures: Path, *, batch_size: int, width: int, gpu_ms: float) -> Loop:
    """Everything that the tagger does between loading and its summary, but for writing."""
    from library.options.spec import parse_options
    from library.preparing.options.tagging import TAGGING_SCRIPT, TaggingOptions
    from library.preparing.shares import Shares
    from library.preparing.tagging.choosing import TagChooser
    from library.preparing.tagging.labels import read_labels
    from library.preparing.tagging.loop import Tagging
    from library.preparing.tagging.model_files import TaggerFiles
    from library.preparing.tagging.onnx_model import OnnxTagger
    from library.preparing.tagging.rules import rules_of

    class WaitingTagger(OnnxTagger):
        def scores(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
            time.sleep(gpu_ms / 1000 * len(pixels))
            return np.zeros((len(pixels), self.num_labels), np.float32)

    class LoopTagging(Tagging):
        def load(self) -> OnnxTagger:
            tagger = super().load()
            return WaitingTagger(**vars(tagger)) if gpu_ms else tagger

    files = TaggerFiles(folder / "model.onnx", folder / "selected_tags.csv")
    make_tagger(files, width)
    labels = read_labels(files.table)
    paths = sorted(pictures.iterdir())

    def loop(num_threads: int | None) -> float:
        arguments = [str(pictures), "--batch_size", str(batch_size)]
        if num_threads is not None:
            arguments += ["--max_data_loader_n_workers", str(num_threads)]
        options = parse_options(TaggingOptions, arguments, **TAGGING_SCRIPT)
        tagging = LoopTagging(options, files, labels, TagChooser(labels, rules_of(options)), Shares())
        tagging.tag(paths, lambda batch: None, with_size=False)
        return tagging.outcome.seconds

    return loop


def make_tagger(files: tuple[Path, Path], width: int) -> None:
    """A graph of convolutions with random weights: patches of 16 pixels, two layers at a stride of 16, and scores."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shapes = {
        "patch": (width, 3, 16, 16),
        "first": (width, width, 3, 3),
        "second": (width, width, 3, 3),
        "head": (width, NUM_TAGS),
    }
    weights = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["scale"] = np.float32([1 / 255])
    padded = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Mul", ["input", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "patch"], ["patches"], strides=[16, 16]),
        helper.make_node("Relu", ["patches"], ["a"]),
        helper.make_node("Conv", ["a", "first"], ["b"], **padded),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "second"], ["d"], **padded),
        helper.make_node("ReduceMean", ["d"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", NUM_TAGS])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), files[0])
    rows = [f"{index},tag_{index},0,1" for index in range(NUM_TAGS)]
    files[1].write_text("\n".join(["tag_id,name,category,count", *rows]), encoding="utf-8")


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


def measure(loop: Loop, rounds: int) -> None:
    """Take turns, the first of each not counted, and tell the medians."""
    for num_threads in (0, None):
        loop(num_threads)
    pairs, busy = [], []
    for index in range(rounds):
        order: list[int | None] = [0, None] if index % 2 == 0 else [None, 0]
        seconds, busy_seconds = {}, {}
        for num_threads in order:
            start = time.process_time()
            seconds[num_threads] = loop(num_threads)
            busy_seconds[num_threads] = time.process_time() - start
        pairs.append((seconds[0], seconds[None]))
        busy.append((busy_seconds[0], busy_seconds[None]))
    ratios = sorted(serial / overlapped for serial, overlapped in pairs)
    for what, rows in (("wall time", pairs), ("time of all processors", busy)):
        serial, overlapped = (median(times) for times in zip(*rows, strict=True))
        print(f"{what}: serial {serial:.2f} s, overlapped {overlapped:.2f} s, medians of {rounds} rounds")
    print(f"ratio {median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


def main(argv: Iterable[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=tuple(WIDTHS))
    for name, default in (("pictures", 48), ("rounds", 7), ("batch_size", 4), ("width", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gpu_ms", type=float, default=0)
    asked = parser.parse_args(None if argv is None else list(argv))
    make_loop = tagging_loop if asked.subject == "tags" else captioning_loop
    with tempfile.TemporaryDirectory() as folder:
        pictures, model = Path(folder) / "pictures", Path(folder) / "model"
        pictures.mkdir()
        model.mkdir()
        make_pictures(pictures, asked.pictures)
        width = asked.width or WIDTHS[asked.subject]
        measure(make_loop(model, pictures, batch_size=asked.batch_size, width=width, gpu_ms=asked.gpu_ms), asked.rounds)


if __name__ == "__main__":
    main()
