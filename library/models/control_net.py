"""ControlNets for Stable Diffusion 1, 2 and XL: diffusers' module from a file or folder, in any of the known layouts.

    published    control_model.input_blocks.0.0.weight ..., the names of the U-Net and three of its own
    diffusers    down_blocks.0.resnets.0.conv1.weight ..., as a single file or in a folder with config.json

Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from library.errors import CheckpointError
from library.models.assign import assign_tensors, shape_of
from library.models.unet_config import unet_config
from library.pickled import read_any_header, read_any_tensors
from library.tensorfile import TensorHeader
from library.unet_names import to_diffusers

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_PICKLED = ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin")
_PREFIX = "control_model."
_HINT = "input_hint_block."
_OWN = "controlnet_"  # begins the names that a U-Net has not
_LAST_HINT = 14


@dataclass(frozen=True)
class ControlNetFile:
    """A ControlNet before its weights are read.

    Attributes:
        header: Of its weights.
        names: {name as in diffusers: name in the file}
        config: Arguments of diffusers' ControlNetModel.
    """

    header: TensorHeader
    names: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def widths(self) -> tuple[int, int]:
        """Of the first block, and of the text: what tells for which models it is."""
        return int(self.config["block_out_channels"][0]), int(self.config["cross_attention_dim"])

    def load(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The ControlNet, frozen, in evaluation mode.

        Raises:
            CheckpointError: Tensors are missing, or are not those of a ControlNet.
        """
        import torch
        from diffusers import ControlNetModel

        with torch.device("meta"):
            net = ControlNetModel(**self.config)
        stored = read_any_tensors(self.header)
        tensors = {name: stored[own].to(device, dtype) for name, own in self.names.items()}
        assign_tensors(net, tensors, str(self.header.path))
        return net.requires_grad_(False).eval()


def open_control_net(path: Path, option: str = "--control_net_models") -> ControlNetFile:
    """Look at a ControlNet without reading its weights.

    Args:
        path: A single file, or a diffusers folder.
        option: How it is called in an error.

    Raises:
        CheckpointError: There is no such file, or it is none of a ControlNet.
    """
    place = _weights_of(path, option) if path.is_dir() else path
    header = read_any_header(place, option)
    names = _in_diffusers(header.tensors)
    if not any(name.startswith(_OWN) for name in names):
        raise CheckpointError(f"{option}: {path} is no ControlNet. Give a single file or a diffusers folder of one.")
    try:
        config = _config_of({name: header.tensors[own].shape for name, own in names.items()})
        stored = path / "config.json"
        if path.is_dir() and stored.exists():
            config |= _stored_settings(json.loads(stored.read_text(encoding="utf-8")))
    except (CheckpointError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{option}: {path} cannot be used as a ControlNet ({error}). Give another.") from error
    return ControlNetFile(header, names, config)


def _weights_of(folder: Path, option: str) -> Path:
    found = next((folder / name for name in (*_WEIGHTS, *_PICKLED) if (folder / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{option}: {folder} has no {_WEIGHTS[0]}. Give the folder of a ControlNet.")
    return found


def _in_diffusers(tensors: Mapping[str, T]) -> dict[str, str]:
    """{name as in diffusers: name in the file} of what belongs to a ControlNet; empty if nothing does."""
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    plain = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    if f"{_HINT}0.weight" not in plain:
        return plain
    own = {name: renamed for name in plain if (renamed := _own_name(name)) is not None}
    try:
        others = to_diffusers(name for name in plain if name not in own)
    except CheckpointError:
        return {}
    return {renamed: plain[name] for name, renamed in {**own, **others}.items()}


def _own_name(name: str) -> str | None:
    """Of a layer that a U-Net has not, in diffusers; None for the others."""
    first, _, rest = name.partition(".")
    if first == "zero_convs":
        number, _, end = rest.partition(".0.")
        return f"{_OWN}down_blocks.{number}.{end}"
    if first == "middle_block_out":
        return f"{_OWN}mid_block.{rest.removeprefix('0.')}"
    if not name.startswith(_HINT):
        return None
    number, _, end = rest.partition(".")
    places = {"0": "conv_in", str(_LAST_HINT): "conv_out"}
    return f"{_OWN}cond_embedding.{places.get(number) or f'blocks.{int(number) // 2 - 1}'}.{end}"


def _config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of diffusers' ControlNetModel."""
    shape = unet_config({**shapes, "conv_out.weight": (4,)})
    config = {key: value for key, value in shape.items() if key not in ("out_channels", "up_block_types")}
    hints = list(_hint_widths(shapes))
    return config | {
        "conditioning_channels": shape_of(shapes, f"{_OWN}cond_embedding.conv_in.weight", "the ControlNet")[1],
        "conditioning_embedding_out_channels": hints,
    }


def _hint_widths(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    """Of the layers that look at the picture."""
    stem = f"{_OWN}cond_embedding"
    yield shape_of(shapes, f"{stem}.conv_in.weight", "the ControlNet")[0]
    number = 1  # every second one makes the picture smaller and wider
    while f"{stem}.blocks.{number}.weight" in shapes:
        yield shapes[f"{stem}.blocks.{number}.weight"][0]
        number += 2


def _stored_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What only a folder's config.json says."""
    names = ("global_pool_conditions", "controlnet_conditioning_channel_order", "attention_head_dim")
    return {name: stored[name] for name in names if stored.get(name) is not None}
