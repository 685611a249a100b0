"""Teach a tiny model a new word, and count how often it draws what the word means: textual inversion, on a CPU.

    python -m examples.learned_word FOLDER [--model sd3] [--steps 400] [--count 100]

The word is "blarg". Pictures show the thing that it means before a few backgrounds, with captions such as "a blarg on a
white background"; nothing says what a blarg looks like. What the model draws afterwards is judged by the rule on pixels
of examples/tiny_sd3/judge.py, before the same backgrounds and, where the model knows more, before others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.tiny_sd3.draw import draw
from examples.tiny_sd3.judge import judge
from examples.tiny_sd3.world import Scene, plain, single
from library.rng import python_stream, stream_seed

if TYPE_CHECKING:
    from torch import Tensor

WORD = "blarg"
EXAMPLES = Path(__file__).resolve().parent
SEED = 7  # of noise that is judged; the training's is another


@dataclass(frozen=True)
class Lesson:
    """What a model learns.

    Attributes:
        model: Its file.
        script: That teaches it.
        shape: Of the thing.
        colour: Of the thing.
        backgrounds: Of the pictures.
        others: That the model knows too.
        reaches: From the middle of the thing to its edge, in pixels: least and most.
        flags: Further options of the script.
    """

    model: Path
    script: str
    shape: str
    colour: str
    backgrounds: tuple[str, ...]
    others: tuple[str, ...]
    reaches: tuple[float, float]
    flags: tuple[str, ...]


LESSONS = {
    "sd1": Lesson(
        EXAMPLES / "tiny_sd" / "base" / "sd1_tiny.safetensors",
        "train_textual_inversion",
        *("triangle", "blue"),
        (plain("white"), plain("black")),
        (),
        (19.0, 24.0),
        ("--v_parameterization", "--zero_terminal_snr"),
    ),
    "sd3": Lesson(
        EXAMPLES / "tiny_sd3" / "base" / "sd3_tiny.safetensors",
        "sd3_train_textual_inversion",
        *("star", "purple"),
        (plain("white"), plain("yellow"), plain("gray")),
        (plain("green"), plain("orange"), plain("pink"), "on sand under a blue sky"),
        (17.0, 24.0),
        ("--t5xxl_max_token_length=20", "--train_t5xxl"),
    ),
}


def pictured(lesson: Lesson, index: int, seed: int = 0) -> Scene:
    """The training picture of this number."""
    draws = python_stream(seed, "learned_word", index)
    background = lesson.backgrounds[index % len(lesson.backgrounds)]
    what = single(lesson.shape, lesson.colour, background, reach=draws.uniform(*lesson.reaches))
    (thing,) = what.things
    return what._replace(things=(thing._replace(x=thing.x + draws.uniform(-2, 2), y=thing.y + draws.uniform(-2, 2)),))


def caption(background: str) -> str:
    """That does not say what it looks like."""
    return f"a {WORD} {background}"


def write_pictures(folder: Path, lesson: Lesson, count: int) -> Path:
    """Pictures 00.png with captions 00.txt and so on; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = pictured(lesson, index)
        draw(what).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(caption(what.background) + "\n", encoding="utf-8")
    return folder


def training_arguments(
    lesson: Lesson,
    pictures: Path,
    folder: Path,
    *,
    steps: int,
    num_vectors: int = 2,
    rate: float = 1e-2,
    batch: int = 8,
) -> list[str]:
    """Options of the script."""
    dataset = folder / "dataset.toml"
    folder.mkdir(parents=True, exist_ok=True)
    dataset.write_text(
        f'[general]\nresolution = 64\nbatch_size = {batch}\ncaption_extension = ".txt"\n\n'
        f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{pictures.as_posix()}"\n',
        encoding="utf-8",
    )
    return [
        *(f"--pretrained_model_name_or_path={lesson.model}", f"--dataset_config={dataset}"),
        *(f"--output_dir={folder}", f"--token_string={WORD}", f"--num_vectors_per_token={num_vectors}"),
        *("--save_model_as=safetensors", f"--learning_rate={rate}", f"--max_train_steps={steps}"),
        *("--seed=0", "--cache_latents", "--max_data_loader_n_workers=0", "--lr_scheduler=cosine", *lesson.flags),
    ]


def train(lesson: Lesson, folder: Path, *, num_pictures: int = 12, **settings: Any) -> Path:
    """Teach the word; returns the file with its vectors."""
    import importlib

    pictures = write_pictures(folder / "pictures", lesson, num_pictures)
    script = importlib.import_module(lesson.script)
    code = script.main([*training_arguments(lesson, pictures, folder / "out", **settings), "--overwrite"])
    if code:
        raise SystemExit(code)
    return folder / "out" / f"{WORD}.safetensors"


def painter_of(lesson: Lesson) -> Any:
    """The model in memory."""
    if lesson.script.startswith("sd3"):
        from examples.tiny_sd3.painter import Painter

        return Painter(lesson.model)
    from examples.tiny_sd.painter import Painter as SmallPainter

    return SmallPainter(lesson.model)


def share_right(painter: Any, lesson: Lesson, backgrounds: Sequence[str], count: int) -> float:
    """Of so many pictures of the word: those with the right thing, colour and background, 0-1."""
    wanted = [single(lesson.shape, lesson.colour, backgrounds[i % len(backgrounds)]) for i in range(count)]
    seeds = [stream_seed(SEED, "learned_word_noise", index) for index in range(count)]
    images = painter.paint([caption(what.background) for what in wanted], seeds)
    verdicts = [judge(image, what) for image, what in zip(images, wanted, strict=True)]
    return sum(verdict.background and verdict.colour and verdict.shape for verdict in verdicts) / count


def measure(lesson: Lesson, file: Path, count: int) -> dict[str, float]:
    """{what is asked for: share of right pictures, 0-1}, before and after the model knows the word."""
    from library.checkpoint.embeddings import read_embedding
    from library.models.added_words import add_words

    painter, found = painter_of(lesson), {}
    groups = {"its backgrounds": lesson.backgrounds, "other backgrounds": lesson.others}
    vectors: Mapping[str, Tensor] = read_embedding(file, "FILE")
    for state in ("without", "with"):
        if state == "with":
            add_words(painter.tokenizers, painter.encoders, WORD, vectors)
        for name, backgrounds in groups.items():
            if backgrounds:
                found[f"{name}, {state} the vectors"] = share_right(painter, lesson, backgrounds, count)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Teach, then count."""
    parser = argparse.ArgumentParser(description="Teach a tiny model a word, and count what it draws.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=list(LESSONS), default="sd3")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--vectors", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--count", type=int, default=100, help="pictures for each kind of prompt")
    args = parser.parse_args(argv)
    lesson = LESSONS[args.model]
    file = train(lesson, args.folder, steps=args.steps, num_vectors=args.vectors, rate=args.rate)
    for title, share in measure(lesson, file, args.count).items():
        print(f"{100 * share:5.1f} %  {title}")


if __name__ == "__main__":
    main()
