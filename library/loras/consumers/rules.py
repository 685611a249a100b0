"""What rules about a reader of LoRA files are made of: places in a model, and pairs of factors that go there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from library.families.lora_layout import LoraPair
from library.loras.consumers.layers import ENCODERS, Layers

if TYPE_CHECKING:
    from torch import Tensor

_ENDS = (  # (up, down), in the order in which they are looked for
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)
ALPHA = ".alpha"
_ENDING = re.compile("(?:" + "|".join(re.escape(end) for pair in _ENDS for end in pair) + "|\\.alpha)$")


@dataclass(frozen=True)
class Place:
    """Where in a model a pair of factors acts.

    Attributes:
        layer: Published name of a layer of the denoiser, or that of transformers with the encoder's folder before it.
        index: Which of the equal windows of its rows.
        number: How many windows there are.
        is_swapped: The halves of the rows are exchanged before they are added.
    """

    layer: str
    index: int = 0
    number: int = 1
    is_swapped: bool = False


@dataclass(frozen=True)
class Content:
    """A file to read.

    Attributes:
        tensors: By key.
        metadata: Of its header.
        layers: Of the model that it is for.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    layers: Layers

    def modules(self) -> list[str]:
        """Keys without their endings, each once, in order."""
        return list(dict.fromkeys(_ENDING.sub("", key) for key in self.tensors))

    def has_alpha(self) -> bool:
        """Whether any alpha is a tensor of the file."""
        return any(key.endswith(ALPHA) for key in self.tensors)


@dataclass(frozen=True)
class Reading:
    """What a program makes of a file.

    Attributes:
        pairs: What acts, and where.
        passed_over: Modules of the file that it does not use, without an error.
        refusal: Why it takes nothing; None where it does not refuse.
        has_way_out: Another form of the file may do more.
    """

    pairs: Sequence[tuple[Place, LoraPair]] = ()
    passed_over: Sequence[str] = field(default=())
    refusal: str | None = None
    has_way_out: bool = True


def read_known(content: Content, known: Mapping[str, Place], *, num_ends: int = len(_ENDS)) -> Reading:
    """Take every module that is known by its name; alpha tensors are heeded.

    Args:
        content: The file.
        known: {name of a module in files: where it acts}
        num_ends: How many pairs of endings the program tries, the usual ones first.
    """
    pairs, passed_over = [], []
    for name in content.modules():
        pair = _pair(content.tensors, name, num_ends) if name in known else None
        if pair is None:
            passed_over.append(name)
        else:
            pairs.append((known[name], pair))
    return Reading(pairs, passed_over)


def _pair(tensors: Mapping[str, Tensor], name: str, num_ends: int) -> LoraPair | None:
    for end_of_up, end_of_down in _ENDS[:num_ends]:
        up, down = tensors.get(name + end_of_up), tensors.get(name + end_of_down)
        if up is not None and down is not None:
            alpha = tensors.get(name + ALPHA)
            return LoraPair(down, up, 1.0 if alpha is None else float(alpha) / down.shape[0])
    return None


def under(name: str) -> str:
    """As kohya files write a name."""
    return name.replace(".", "_")


def published_names(layers: Layers, prefix: str = "lora_unet_") -> dict[str, Place]:
    """{prefix and published name: place}; with points where the prefix ends in one."""
    form = str if prefix.endswith(".") else under
    return {prefix + form(layer.published): Place(layer.published) for layer in layers.denoiser}


def diffusers_names(layers: Layers, prefix: str) -> dict[str, Place]:
    """{prefix and name in diffusers: place}; query, key and value are windows of what is one layer in the MMDiT."""
    form = str if prefix.endswith(".") else under
    return {
        prefix + form(name): Place(layer.published, index, len(layer.diffusers), layer.is_swapped)
        for layer in layers.denoiser
        for index, name in enumerate(layer.diffusers)
    }


def encoder_names(layers: Layers) -> dict[str, Place]:
    """{name in kohya files: place} of the text encoders."""
    return {prefix + under(path): Place(folder + path) for prefix, folder, path in _of_encoders(layers)}


def projection_names(layers: Layers) -> dict[str, Place]:
    """{name in kohya files: place} of what makes the pooled vector of CLIP-G."""
    prefix = "lora_te2_"
    folder = ENCODERS[layers.family].get(prefix)
    return {} if folder is None else {f"{prefix}text_projection": Place(f"{folder}text_projection")}


def projection_paths(layers: Layers) -> dict[str, Place]:
    """{folder in diffusers and name: place} of the same."""
    return {place.layer: place for place in projection_names(layers).values()}


def encoder_paths(layers: Layers) -> dict[str, Place]:
    """{folder in diffusers and name: place} of the CLIPs."""
    return {folder + path: Place(folder + path) for _, folder, path in _of_encoders(layers) if path in layers.clip}


def _of_encoders(layers: Layers) -> Iterator[tuple[str, str, str]]:
    for prefix, folder in ENCODERS[layers.family].items():
        for path in layers.t5 if prefix == "lora_te3_" else layers.clip:
            yield prefix, folder, path
