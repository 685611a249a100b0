"""Count how often a LoRA of the zorp draws it when asked to and when not, and what becomes of other prompts.

    python -m examples.tiny_sd3.lora_quality MODEL --lora FILE [--count 200] [--strength 1] [--seed 7]

The rules on pixels are those of zorp_judge.py and judge.py. Other prompts are of all groups of quality.py in turn; they
are drawn without the LoRA too, with the same noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from examples.tiny_sd3.judge import judge
from examples.tiny_sd3.quality import GROUPS, SEED, asked
from examples.tiny_sd3.world import LANDSCAPES, PLAINS, Scene
from examples.tiny_sd3.zorp import BACKGROUNDS, asked_for
from examples.tiny_sd3.zorp_judge import find_zorp, is_as_asked
from library.log import set_up_logging

if TYPE_CHECKING:
    from PIL.Image import Image

    from examples.tiny_sd3.painter import Painter

NEW_BACKGROUNDS = tuple(name for name in (*PLAINS, *LANDSCAPES) if name not in BACKGROUNDS)
TITLES = {
    "zorp": "a zorp before backgrounds of its pictures: there is one",
    "zorp_as_asked": "its size, place and background are right, too",
    "new": "a zorp before other backgrounds: there is one",
    "new_as_asked": "its size, place and background are right, too",
    "other_zorp": "other prompts: there is a zorp",
    "other_before": "other prompts: everything is right, without the LoRA",
    "other_after": "other prompts: everything is right, with the LoRA",
    "other_kept": "of those that are right without it, right with it",
}


class Group(NamedTuple):
    """Prompts of one kind, and the name of their noise."""

    name: str
    wanted: Sequence[Scene]


def prompts_with_zorp(count: int, seed: int = SEED) -> tuple[Group, Group]:
    """Zorps before the backgrounds of the training pictures, and before others."""
    return (
        Group("zorp", [asked_for(seed, index, BACKGROUNDS) for index in range(count)]),
        Group("new", [asked_for(seed, index, NEW_BACKGROUNDS) for index in range(count)]),
    )


def other_prompts(count: int, seed: int = SEED) -> Group:
    """As many prompts without a zorp, of all kinds in turn."""
    kinds = [asked(group, -(-count // len(GROUPS)), seed) for group in GROUPS]
    return Group("other", [what for row in zip(*kinds, strict=True) for what in row][:count])


def measure(painter: Painter, lora: Path, count: int, *, strength: float = 1.0, seed: int = SEED) -> dict[str, float]:
    """{key of TITLES: share 0-1}, from as many pictures for each kind of prompt.

    Raises:
        CheckpointError: The file is no LoRA for this model.
    """
    others = other_prompts(count, seed)
    before = _are_right(_paint(painter, others, seed), others)
    painter.add_lora(lora, strength)
    found = {}
    for group in prompts_with_zorp(count, seed):
        images = _paint(painter, group, seed)
        found[group.name] = _share([find_zorp(image) is not None for image in images])
        is_right = [is_as_asked(image, what) for image, what in zip(images, group.wanted, strict=True)]
        found[f"{group.name}_as_asked"] = _share(is_right)
    images = _paint(painter, others, seed)
    after = _are_right(images, others)
    found["other_zorp"] = _share([find_zorp(image) is not None for image in images])
    found |= {"other_before": _share(before), "other_after": _share(after)}
    found["other_kept"] = _share([now for was, now in zip(before, after, strict=True) if was])
    return found


def _paint(painter: Painter, group: Group, seed: int) -> list[Image]:
    from examples.tiny_sd3.painter import seeds_for

    return painter.paint([what.caption for what in group.wanted], seeds_for(seed, group.name, len(group.wanted)))


def _are_right(images: Sequence[Image], group: Group) -> list[bool]:
    return [judge(image, what).is_right for image, what in zip(images, group.wanted, strict=True)]


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the shares of the LoRA that the command line names."""
    parser = argparse.ArgumentParser(description="Count what a LoRA of the zorp draws, in percent.")
    parser.add_argument("model", type=Path, help="a single file with everything inside, tokenizers beside it")
    parser.add_argument("--lora", type=Path, required=True)
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRA")
    parser.add_argument("--count", type=int, default=200, help="pictures for each kind of prompt")
    parser.add_argument("--seed", type=int, default=SEED, help="of prompts and noise")
    parser.add_argument("--json", type=Path, help="write the shares here, too")
    args = parser.parse_args(argv)
    set_up_logging("WARNING")
    from examples.tiny_sd3.painter import Painter

    found = measure(Painter(args.model), args.lora, args.count, strength=args.strength, seed=args.seed)
    for key, title in TITLES.items():
        print(f"{100 * found[key]:5.1f} %  {title}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
