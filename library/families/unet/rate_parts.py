"""The parts of a U-Net that may have learning rates of their own: its blocks as published checkpoints count them."""

from __future__ import annotations

from torch import nn

from library.unet_names import to_published

_EMBEDDERS = ("time_embed", "label_emb")
_ROWS = ("input_blocks", "middle_block", "output_blocks")
_BEHIND = "out"


def rate_parts(unet: nn.Module) -> dict[str, list[nn.Module]]:
    """{part: modules}: "embedders"; "input_0", ..., "middle_0", ..., "output_0", ...; "out". For SDXL these are 23.

    Args:
        unet: Under the names of diffusers.
    """
    leaves = [name for name, module in unet.named_modules() if any(True for _ in module.parameters(recurse=False))]
    published = to_published(leaves)
    parts: dict[str, list[nn.Module]] = {"embedders": []}
    found: dict[tuple[int, int], list[nn.Module]] = {}
    behind: list[nn.Module] = []
    for name in leaves:
        first, number, *_ = published[name].split(".")
        module = unet.get_submodule(name)
        if first in _EMBEDDERS:
            parts["embedders"].append(module)
        elif first == _BEHIND:
            behind.append(module)
        else:
            found.setdefault((_ROWS.index(first), int(number)), []).append(module)
    for row, place in sorted(found):
        parts[f"{_ROWS[row].partition('_')[0]}_{place}"] = found[row, place]
    return {**parts, _BEHIND: behind}
