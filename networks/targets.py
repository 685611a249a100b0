"""Which modules of a model get an adapter, and of what rank: a table of rules.

Pure functions over module names, without torch, so that a choice that leaves nothing to train is
known before any weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CLIP_LAYERS = r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
"""The layers of a CLIP text encoder that get adapters, for names as files have them."""


@dataclass(frozen=True)
class ModelOutline:
    """What is known of a denoiser before its weights are read.

    Attributes:
        family: "sd1", "sd2", "sdxl" or "sd3".
        layers: {name of a linear or convolution layer, as LoRA files call it but with dots: shape of its weight}
        depth: Number of blocks.
    """

    family: str
    layers: Mapping[str, tuple[int, ...]]
    depth: int


@dataclass(frozen=True)
class Slot:
    """A model that can have adapters.

    Attributes:
        part_name: As optimizer groups are described: "unet", "textencoder 1" ...
        prefix: How the names of its modules begin in a file, for instance lora_unet.
        title: As the log calls it.
    """

    part_name: str
    prefix: str
    title: str


@dataclass(frozen=True)
class TargetRule:
    """One line of the table.

    Attributes:
        pattern: Regular expression for the whole dotted module name.
        rank: Rank of the adapter; 0 means that no adapter is made.
        alpha: The adapter's output is scaled by alpha / rank; None or 0 means the rank.
        num_parts: Into how many equal output parts (query, key, value) the layer is split, each with its own
            factors of that rank.
    """

    pattern: str
    rank: int
    alpha: float | None = None
    num_parts: int = 1


@dataclass(frozen=True)
class PlannedModule:
    """A module that gets an adapter; the fields are those of the rule that matched."""

    name: str
    rank: int
    alpha: float
    num_parts: int = 1


def plan_modules(names: Iterable[str], rules: Sequence[TargetRule]) -> tuple[PlannedModule, ...]:
    """Apply the table to module names, in their order. The first rule that matches a name decides."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    planned = []
    for name in names:
        rule = next((rule for pattern, rule in compiled if pattern.fullmatch(name)), None)
        if rule is not None and rule.rank > 0:
            planned.append(PlannedModule(name, rule.rank, rule.alpha or float(rule.rank), rule.num_parts))
    return tuple(planned)


def adapter_name(prefix: str, module_name: str) -> str:
    """The name of a module's adapter in a file: the prefix and the module name with underscores."""
    return f"{prefix}_{module_name.replace('.', '_')}"
