"""The tiny model has the names of the published files, and shapes in the same proportions."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from library.tensorfile import read_header

MANIFESTS = Path(__file__).parent / "data" / "state_dicts"
BLOCK = re.compile(r"(joint_blocks|encoder\.layers|encoder\.block)\.(\d+)\.")
Shapes = Mapping[str, tuple[int, ...]]


def published(name: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return {key: tuple(shape) for key, (shape, _) in json.load(file)["tensors"].items()}


def templates(shapes: Shapes) -> set[str]:
    """Names with their block numbers taken out, the last block apart: its context half is shorter."""
    last: dict[str, int] = {}
    for name in shapes:
        if match := BLOCK.search(name):
            prefix = name[: match.start(2)]
            last[prefix] = max(last.get(prefix, 0), int(match[2]))

    def template(name: str) -> str:
        match = BLOCK.search(name)
        if match is None or match[1] != "joint_blocks":
            return BLOCK.sub(r"\1.N.", name)
        number = "last" if int(match[2]) == last[name[: match.start(2)]] else "N"
        return f"{name[: match.start(2)]}{number}{name[match.end(2) :]}"

    return {template(name) for name in shapes if "nin_shortcut" not in name}  # where VAE widths change: ours differ


def proportions(shapes: Shapes) -> dict[str, tuple[float, ...]]:
    """Shapes of the first block in units of the model's width; head-sized ones as they are."""
    width = shapes["model.diffusion_model.x_embedder.proj.weight"][0]
    return {
        name: tuple(side if side == 64 else side / width for side in shape)
        for name, shape in shapes.items()
        if "joint_blocks.0." in name
    }


@pytest.mark.parametrize(
    ("variant", "manifest"),
    [
        ("medium", "sd3_medium_incl_clips_t5xxlfp16"),
        ("5-medium", "sd3.5_medium"),
        ("5-large", "sd3.5_large"),
    ],
)
def test_names_and_proportions_are_those_of_the_published_file(
    tiny_sd3_factory: Callable[..., Any], variant: str, manifest: str
):
    theirs = published(manifest)
    ours: Shapes = read_header(tiny_sd3_factory(variant=variant).model).shapes()
    if not any(name.startswith("text_encoders.") for name in theirs):
        ours = {name: shape for name, shape in ours.items() if not name.startswith("text_encoders.")}
    assert templates(ours) == templates(theirs)
    assert proportions(ours) == proportions(theirs)
    assert {len(shape) for shape in ours.values()} == {len(shape) for shape in theirs.values()}
