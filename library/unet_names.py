"""Names inside the U-Nets of SD 1.x, 2.x and SDXL: published files and diffusers, one table used in both directions.

It holds for names of layers ("input_blocks.4.1.proj_in") and of tensors ("input_blocks.4.1.proj_in.weight") alike.
Published files count all blocks in one row: of each level two resblocks and what changes the size on the way down,
three resblocks on the way up. What follows a layer's name, as `.weight` does, is the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from library.errors import CheckpointError

_ENDS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_LEVEL = re.compile(r"(?:(input_blocks|output_blocks)|(?:down|up)_blocks)\.(\d+)\.")
_DOWN, _UP = 2, 3  # resblocks of a level
_ROW = 3  # blocks of a level in a published file


def to_published(names: Iterable[str]) -> dict[str, str]:
    """{name of diffusers: published name}.

    Args:
        names: Those of a whole U-Net, of layers or tensors: a published name of a level's upsampler depends on whether
            the level has attention.

    Raises:
        CheckpointError: A name that is not of such a U-Net.
    """
    known = list(names)
    attentive = {name.split(".")[1] for name in known if name.startswith("up_blocks.") and ".attentions." in name}
    stems = {}
    for published, diffusers in _stems(_num_levels(known)):
        level = diffusers.split(".")[1] if ".upsamplers." in diffusers else None
        if level is None or published.endswith(".2.conv") == (level in attentive):
            stems[diffusers] = published
    return _renamed(known, stems)


def to_diffusers(names: Iterable[str]) -> dict[str, str]:
    """{published name: name of diffusers}. The inverse of `to_published`.

    Args:
        names: Of layers or tensors.

    Raises:
        CheckpointError: A name that is not of such a U-Net.
    """
    known = list(names)
    return _renamed(known, dict(_stems(_num_levels(known))))


def _stems(num_levels: int) -> Iterator[tuple[str, str]]:
    """(published, diffusers) of every layer there can be outside attention, and of what attention blocks begin with."""
    yield from _ENDS
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield "middle_block.1", "mid_block.attentions.0"
    yield from _resnet("middle_block.2", "mid_block.resnets.1")
    for level in range(num_levels):
        yield from _level_down(level)
        yield from _level_up(level)


def _level_down(level: int) -> Iterator[tuple[str, str]]:
    first = 1 + _ROW * level
    for index in range(_DOWN):
        yield from _resnet(f"input_blocks.{first + index}.0", f"down_blocks.{level}.resnets.{index}")
        yield f"input_blocks.{first + index}.1", f"down_blocks.{level}.attentions.{index}"
    yield f"input_blocks.{first + _DOWN}.0.op", f"down_blocks.{level}.downsamplers.0.conv"


def _level_up(level: int) -> Iterator[tuple[str, str]]:
    first = _ROW * level
    for index in range(_UP):
        yield from _resnet(f"output_blocks.{first + index}.0", f"up_blocks.{level}.resnets.{index}")
        yield f"output_blocks.{first + index}.1", f"up_blocks.{level}.attentions.{index}"
    for place in (1, 2):  # behind the resblock, or behind the attention
        yield f"output_blocks.{first + _UP - 1}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"


def _resnet(published: str, diffusers: str) -> Iterator[tuple[str, str]]:
    return ((f"{published}.{ours}", f"{diffusers}.{theirs}") for ours, theirs in _RESNET)


def _num_levels(names: Iterable[str]) -> int:
    levels = []
    for match in filter(None, map(_LEVEL.match, names)):
        number = int(match[2])
        levels.append({"input_blocks": (number - 1) // _ROW, "output_blocks": number // _ROW}.get(match[1], number))
    return 1 + max(levels, default=-1)


def _renamed(names: list[str], stems: Mapping[str, str]) -> dict[str, str]:
    renamed = {name: _with_stem(name, stems) for name in names}
    unknown = sorted(name for name, other in renamed.items() if other is None)
    if unknown:
        first = ", ".join(unknown[:3])
        raise CheckpointError(f"not a U-Net of Stable Diffusion: {len(unknown)} unknown names, {first}.")
    return {name: other for name, other in renamed.items() if other is not None}


def _with_stem(name: str, stems: Mapping[str, str]) -> str | None:
    """The name with its longest beginning that is a stem put into the other layout."""
    stem, rest = name, ""
    while stem:
        if stem in stems:
            return stems[stem] + rest
        stem, _, last = stem.rpartition(".")
        rest = f".{last}{rest}"
    return None
