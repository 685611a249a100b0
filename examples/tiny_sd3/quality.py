"""Count how many pictures of a model show what was asked for, by the rule on pixels of judge.py.

    python -m examples.tiny_sd3.quality MODEL [--lora FILE] [--count 200] [--guidance 2.5] [--steps 20]

Each group has its own captions, which the training did not see in this order and, for "unseen", with combinations of
shape, colour and background that it never saw. The background is always named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from examples.tiny_sd3.judge import Verdict, judge
from examples.tiny_sd3.start import SHORT
from examples.tiny_sd3.world import Scene, scene, unseen

if TYPE_CHECKING:
    from PIL.Image import Image

    from examples.tiny_sd3.painter import Painter

GROUPS = {
    "simple": "one thing on a plain background",
    "unseen": "the same, in combinations that were never trained",
    "two": "two things",
    "pattern": "striped or dotted",
    "landscape": "where sky meets ground",
}
SEED = 7  # of captions and noise; the training's is another


def asked(group: str, count: int, seed: int = SEED) -> list[Scene]:
    """What is asked for in a group."""
    scenes = [unseen(seed, index) if group == "unseen" else scene(seed, index, group) for index in range(count)]
    return [what._replace(says_background=True) for what in scenes]


def shares(images: Sequence[Image], wanted: Sequence[Scene]) -> dict[str, float]:
    """{"background", "colour" and so on, and "all": share of the pictures that are right in it}, 0-1."""
    verdicts = [judge(image, what) for image, what in zip(images, wanted, strict=True)]
    right = {trait: sum(getattr(verdict, trait) for verdict in verdicts) for trait in Verdict._fields}
    right["all"] = sum(verdict.is_right for verdict in verdicts)
    return {trait: number / len(verdicts) for trait, number in right.items()}


def measure(
    painter: Painter,
    count: int,
    *,
    groups: Sequence[str] = tuple(GROUPS),
    steps: int,
    guidance: float,
    seed: int = SEED,
) -> dict[str, dict[str, float]]:
    """{group: shares}, from as many pictures for each."""
    from examples.tiny_sd3.painter import seeds_for

    found = {}
    for group in groups:
        wanted = asked(group, count, seed)
        images = painter.paint(
            [what.caption for what in wanted], seeds_for(seed, group, count), steps=steps, guidance=guidance
        )
        found[group] = shares(images, wanted)
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Shares in percent, as a table of Markdown."""
    titles = [*Verdict._fields, "all"]
    lines = [f"| asked for | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for group, right in found.items():
        lines.append(f"| {GROUPS[group]} | {' | '.join(f'{100 * right[title]:.1f}' for title in titles)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the model that the command line names."""
    parser = argparse.ArgumentParser(description="Count how many pictures show what was asked for, in percent.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--lora", type=Path, help="a network that is put beside the model")
    parser.add_argument("--strength", type=float, default=1.0, help="of the network")
    parser.add_argument("--count", type=int, default=200, help="pictures in each group")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--guidance", type=float, help="else that of painter.py")
    parser.add_argument("--steps", type=int, help="of the sampler, else that of painter.py")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--tokenizer_dir", type=Path, help="else the tokenizers beside the model")
    parser.add_argument("--t5_length", type=int, default=SHORT, help="tokens of T5")
    parser.add_argument("--json", type=Path, help="write the shares here, too")
    args = parser.parse_args(argv)
    from examples.tiny_sd3.painter import GUIDANCE, STEPS, Painter

    painter = Painter(args.model, tokenizer_dir=args.tokenizer_dir, t5_length=args.t5_length)
    if args.lora:
        painter.add_lora(args.lora, args.strength)
    steps, guidance = args.steps or STEPS, args.guidance or GUIDANCE
    found = measure(painter, args.count, groups=args.groups, steps=steps, guidance=guidance, seed=args.seed)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
