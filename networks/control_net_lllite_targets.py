"""Which layers of an SDXL U-Net get an LLLite module, of which shapes, and what is in a file of them. Without torch.

File layout: `lllite_unet_<published name of a layer with _>.<conditioning1.0|conditioning1.2|conditioning1.4|down.0|
mid.0|up.0>.<weight|bias>`. Modules sit on what makes query, key and value of attention, in the input and middle blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from library.errors import CheckpointError, OptionError
from networks.targets import ModelOutline, Slot, adapter_name
from networks.weights import describe_file

Shapes = Mapping[str, tuple[int, ...]]

DENOISER = Slot("unet", "lllite_unet", "U-Net")
DEFAULT_COND_EMB_DIM, DEFAULT_MLP_DIM = 32, 64
_TARGET = re.compile(r"(input_blocks\.(\d+)|middle_block)\.\d+\.transformer_blocks\.\d+\.(attn1\.to_[qkv]|attn2\.to_q)")
_ROW = 3  # input blocks of a level
_DEEPEST = 3  # level, which is that of the middle too
_CONVOLUTIONS = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}  # side, which is the stride too


class Widths(NamedTuple):
    """Of all modules of a network.

    Attributes:
        condition: Channels of the picture's embedding; even.
        inner: Of the layers between: "mlp_dim".
    """

    condition: int
    inner: int


def level_of(name: str) -> int | None:
    """Level of the U-Net that a layer is in, from 1, where it gets a module; else None. `name` is published, dotted."""
    match = _TARGET.fullmatch(name)
    if match is None:
        return None
    return _DEEPEST if match[2] is None else (int(match[2]) - 1) // _ROW + 1


def target_levels(names: Iterable[str]) -> dict[str, int]:
    """{published name: level} of the layers that get a module, in their order."""
    return {name: level for name in names if (level := level_of(name)) is not None}


def convolutions(level: int, widths: Widths) -> list[tuple[int, int, int]]:
    """(channels in, channels out, side of kernel and stride) of the convolutions that embed a picture for a level."""
    sides = _CONVOLUTIONS[level]
    half = widths.condition // 2
    outputs = [half] * (len(sides) - 1) + [widths.condition]
    return list(zip([3, *outputs[:-1]], outputs, sides, strict=True))


def module_shapes(level: int, inputs: int, widths: Widths) -> dict[str, tuple[int, ...]]:
    """{end of a key: shape} of the module of a layer with so many inputs."""
    weights: dict[str, tuple[int, ...]] = {
        f"conditioning1.{2 * index}": (after, before, side, side)
        for index, (before, after, side) in enumerate(convolutions(level, widths))
    }
    weights["down.0"] = (widths.inner, inputs)
    weights["mid.0"] = (widths.inner, widths.inner + widths.condition)
    weights["up.0"] = (inputs, widths.inner)
    return {
        f".{name}.{kind}": shape if kind == "weight" else shape[:1]
        for name, shape in weights.items()
        for kind in ("weight", "bias")
    }


def check_widths(widths: Widths) -> Widths:
    """Raise OptionError where there can be no such modules; returns them."""
    if widths.condition < 2 or widths.condition % 2:
        raise OptionError(f"--cond_emb_dim must be an even number of at least 2, got {widths.condition}.")
    if widths.inner < 1:
        raise OptionError(f"--network_dim must be at least 1, got {widths.inner}.")
    return widths


def sdxl_layers(model: ModelOutline | None) -> Shapes:
    """{published name: shape of the weight} of the layers that get a module.

    Raises:
        OptionError: The model is none of SDXL.
    """
    if model is None or model.family != "sdxl":
        raise OptionError("ControlNet-LLLite is for SDXL. Give a model of SDXL.")
    return {name: model.layers[name] for name in target_levels(model.layers)}


def modules_of_file(shapes: Shapes, what: str, inputs: Mapping[str, int]) -> tuple[Widths, list[str]]:
    """Look at the header of a file.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        inputs: {published name of a layer that may have a module: number of its inputs}

    Returns:
        The widths, and the published names of the layers that the file has modules of.

    Raises:
        CheckpointError: It is no LLLite, is for another model, or damaged.
    """
    prefix = f"{DENOISER.prefix}_"
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        name, dot, end = key.partition(".")
        if not (key.startswith(prefix) and dot):
            raise CheckpointError(
                f"{what} is {describe_file(shapes)}: {key} cannot be used here. Give a ControlNet-LLLite."
            )
        found.setdefault(name, {})[f".{end}"] = shape
    layers = {adapter_name(DENOISER.prefix, name): name for name in inputs}
    if unknown := sorted(found.keys() - layers.keys()):
        raise CheckpointError(
            f"{what} is a ControlNet-LLLite for another model: {len(unknown)} of its {len(found)} modules have no "
            f"place in this one ({unknown[0]}). Give a file that was trained for SDXL."
        )
    if not found:
        raise CheckpointError(f"{what} has no tensors. Give a ControlNet-LLLite.")
    widths = _widths_of(found, what)
    for name, own in found.items():
        layer = layers[name]
        _check_module(name, own, module_shapes(level_of(layer) or _DEEPEST, inputs[layer], widths), what)
    return widths, [layers[name] for name in layers if name in found]


def _widths_of(found: Mapping[str, Shapes], what: str) -> Widths:
    name, own = next(iter(found.items()))
    mid = own.get(".mid.0.weight", ())
    if len(mid) != 2 or (mid[1] - mid[0]) < 2 or (mid[1] - mid[0]) % 2:
        raise CheckpointError(f"{what} is damaged: {name}.mid.0.weight is missing or has another shape than there is.")
    return Widths(mid[1] - mid[0], mid[0])


def _check_module(name: str, own: Shapes, expected: Shapes, what: str) -> None:
    for end in sorted(own.keys() | expected.keys()):
        if own.get(end) == expected.get(end):
            continue
        said = [f"{list(shape)}" if shape is not None else "nothing" for shape in (own.get(end), expected.get(end))]
        raise CheckpointError(
            f"{what} does not fit: {name}{end} is {said[0]} in the file and {said[1]} for this model. Give a "
            "ControlNet-LLLite that was trained for it."
        )
