"""Weights of the blocks of a model ("LBW"): how lists are written, and which module of a LoRA has which weight.

Lists for U-Nets are those of the LoRA Block Weight extension: BASE, then blocks from the input to the output. BASE is
what lies outside of the blocks: text encoders, what embeds time and sizes, and the last convolution.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from library.errors import CheckpointError, OptionError
from library.unet_names import to_published

BASE, OUT = "BASE", "OUT"
_UNET = "lora_unet_"
_SD_LONG = (BASE, *(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12)))
_SD_SHORT = (BASE, *(f"IN{i:02}" for i in (1, 2, 4, 5, 7, 8)), "M00", *(f"OUT{i:02}" for i in range(3, 12)))
_SDXL_LONG = (BASE, *(f"IN{i:02}" for i in range(9)), "M00", *(f"OUT{i:02}" for i in range(9)))
_SDXL_SHORT = (BASE, *(f"IN{i:02}" for i in (4, 5, 7, 8)), "M00", *(f"OUT{i:02}" for i in range(6)))
UNET_LISTS: Mapping[str, Sequence[Sequence[str]]] = {
    "sd": (_SD_SHORT, _SD_LONG),
    "sdxl": (_SDXL_SHORT, _SDXL_LONG),
}
"""{family: the lists that there are}, each as names of blocks in their order."""
SD3_DEPTHS = (24, 38)  # of SD3-medium and SD3.5-medium, and of SD3.5-large
_ALL = "ALL"
PRESETS: Mapping[str, tuple[float, ...] | None] = {  # for SD1 and SD2, but the first
    _ALL: None,
    "INS": (1, 1, 1) + (0,) * 14,
    "IND": (1, 0, 0, 0, 1, 1, 1) + (0,) * 10,
    "INALL": (1,) * 7 + (0,) * 10,
    "MIDD": (1, 0, 0, 0, *(1,) * 8, *(0,) * 5),
    "OUTD": (1,) + (0,) * 7 + (1,) * 4 + (0,) * 5,
    "OUTS": (1,) + (0,) * 11 + (1,) * 5,
    "OUTALL": (1,) + (0,) * 7 + (1,) * 9,
}
_PLACE = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.")
_LABELS = {"input_blocks": "IN", "output_blocks": "OUT"}
_SD3_BLOCK = re.compile(rf"{_UNET}joint_blocks_(\d+)_")


def parse_weights(text: str) -> tuple[float, ...] | None:
    """The numbers of a list as [1,0,0.5] or 1,0,0.5, or those that a name stands for; None for 1 everywhere.

    Raises:
        OptionError: It is neither.
    """
    plain = text.strip().strip("'\"")
    if plain.upper() in PRESETS:
        return PRESETS[plain.upper()]
    try:
        found = json.loads(plain if plain.startswith("[") else f"[{plain}]")
    except ValueError:
        found = None
    is_list = isinstance(found, list) and bool(found)
    if not is_list or not all(
        isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item) for item in found
    ):
        raise OptionError(
            f"--lbws {text!r} is no list of numbers. Write it as [1,0,0.5] or 1,0,0.5, or one of {', '.join(PRESETS)}."
        )
    return tuple(float(item) for item in found)


def module_weights(names: Iterable[str], family: str, weights: Sequence[float], what: str) -> dict[str, float]:
    """{module: weight of its block}

    Args:
        names: Of modules in a kohya file.
        family: "sd", "sdxl" or "sd3".
        weights: From `parse_weights`.
        what: The file, for messages.

    Raises:
        CheckpointError: The list has another length than those of the family, or no weight for a block that the file
            has modules in.
    """
    blocks = blocks_of(names, family)
    by_block = dict(zip(_labels(blocks.values(), family, len(weights), what), weights, strict=True))
    if family == "sd3":  # what a list of the blocks alone does not name keeps its strength
        by_block = {BASE: 1.0, OUT: 1.0} | by_block
    if left := sorted({block for block in blocks.values() if block not in by_block}):
        longest = _lengths(family, ())[-1]
        raise CheckpointError(
            f"--lbws: {what} has modules in {', '.join(left)}, which a list of {len(weights)} numbers does not name. "
            f"Give the list of {longest}."
        )
    return {name: by_block[block] for name, block in blocks.items()}


def blocks_of(names: Iterable[str], family: str) -> dict[str, str]:
    """{module: name of its block}, such as "BASE", "IN04", "M00" or "OUT02"; of SD3 "BASE", "00" and so on, "OUT"."""
    known = list(names)
    if family == "sd3":
        return {name: _sd3_block(name) for name in known}
    published = _published(known, family)
    return {name: _unet_block(published.get(name, "")) for name in known}


def _published(names: Iterable[str], family: str) -> dict[str, str]:
    from library.families.unet.lora_format import dotted

    layers = {name: dotted(name.removeprefix(_UNET)) for name in names if name.startswith(_UNET)}
    if family == "sdxl":
        return layers
    own = to_published(layers.values())
    return {name: own[layer] for name, layer in layers.items()}


def _unet_block(published: str) -> str:
    match = _PLACE.match(published)
    if match is None:
        return BASE
    return f"{_LABELS[match[1]]}{int(match[2]):02}" if match[1] in _LABELS else "M00"


def _sd3_block(name: str) -> str:
    if match := _SD3_BLOCK.match(name):
        return f"{int(match[1]):02}"
    return OUT if name.startswith(f"{_UNET}final_layer") else BASE


def _labels(blocks: Iterable[str], family: str, length: int, what: str) -> Sequence[str]:
    if family != "sd3":
        found = next((labels for labels in UNET_LISTS[family] if len(labels) == length), None)
    else:
        depth = next((depth for depth in _depths(blocks) if length in (depth, depth + 2)), None)
        rows = [f"{index:02}" for index in range(depth or 0)]
        found = None if depth is None else rows if length == depth else [BASE, *rows, OUT]
    if found is None:
        presets = " (as INS and the others, which are for SD1 and SD2)" if length == len(_SD_SHORT) else ""
        *most, last = map(str, _lengths(family, blocks))
        raise CheckpointError(
            f"--lbws has a list of {length} numbers{presets}. For {what} it has {', '.join(most)} or {last}: "
            "see docs/merge_lora.md."
        )
    return found


def _lengths(family: str, blocks: Iterable[str]) -> list[int]:
    """How long lists can be, the longest last."""
    if family != "sd3":
        return [len(labels) for labels in UNET_LISTS[family]]
    return sorted({depth + more for depth in _depths(blocks) for more in (0, 2)})


def _depths(blocks: Iterable[str]) -> list[int]:
    """Numbers of blocks that a model may have: the published ones, or as many as a file has."""
    least = 1 + max((int(block) for block in blocks if block.isdigit()), default=-1)
    return sorted({*(depth for depth in SD3_DEPTHS if depth >= least), *([least] if least else [])})
