"""LoRA files of SDXL, SD1 and SD2: the kohya layout (ComfyUI, Forge, A1111) and that of diffusers (PEFT), in both
directions.

kohya: `lora_unet_<name with _>...`, for SDXL the published name and for SD1 and SD2 that of diffusers;
diffusers: `unet.<its own name>...`. Factors are the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.families.lora_layout import clip_name, clip_path, diffusers_modules, kohya_modules
from library.families.unet.kinds import facts_of
from library.unet_names import to_diffusers, to_published

if TYPE_CHECKING:
    from torch import Tensor

_UNET, _COMPONENT = "lora_unet_", "unet."
# words of names that have an underscore themselves
_WORDS = (
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "conv_in", "conv_out"),
    *("down_blocks", "mid_block", "up_blocks", "time_emb_proj", "conv_shortcut"),
    *("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks"),
    *("in_layers", "emb_layers", "out_layers", "skip_connection"),
    *("transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"),
)
_WORD = re.compile(rf"(?:{'|'.join(_WORDS)}|[a-z]+\d*|\d+)(?=_|$)")
_RESNET = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
_INSIDE = r"attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)"
_ATTENTION = rf"attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\.({_INSIDE}))"
_LAYER = re.compile(
    r"(time|add)_embedding\.linear_[12]|conv_in|conv_out"
    rf"|((down|up)_blocks\.\d+|mid_block)\.({_RESNET}|{_ATTENTION}|(down|up)samplers\.0\.conv)"
)
_UPSAMPLER = re.compile(r"(up_blocks\.\d+)\.upsamplers\.")


def kohya_to_diffusers(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The kohya layout to that of diffusers; alpha is folded into the factors.

    Args:
        tensors: Content of the file.
        kind: "sd1", "sd2" or "sdxl"; or the family "sd".

    Raises:
        CheckpointError: Something else than LoRA, a module that such models do not have, or one without a factor.
    """
    modules = kohya_modules(tensors)
    own = {name: dotted(name.removeprefix(_UNET)) for name in modules if name.startswith(_UNET)}
    paths = _diffusers_names(own.values(), kind)
    converted: dict[str, Tensor] = {}
    for name, module in modules.items():
        path = paths.get(own[name]) if name in own else None
        full = clip_path(name, _encoders(kind)) if path is None else _COMPONENT + path
        if full is None:
            raise _foreign(name, kind)
        converted |= module.to_diffusers(full)
    return converted


def diffusers_to_kohya(
    tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """The layout of diffusers to the kohya layout. Alpha is the rank where nothing else is noted.

    Args:
        tensors: Content of the file.
        kind: As for `kohya_to_diffusers`.
        metadata: Of the file; an alpha that diffusers wrote there ("lora_adapter_metadata") is heeded.

    Raises:
        CheckpointError: As for `kohya_to_diffusers`.
    """
    modules = diffusers_modules(tensors, metadata or {})
    own = {path: path.removeprefix(_COMPONENT) for path in modules if path.startswith(_COMPONENT)}
    names = _kohya_names([name for name in own.values() if _LAYER.fullmatch(name)], kind)
    converted: dict[str, Tensor] = {}
    for path, module in modules.items():
        name = names.get(own[path]) if path in own else clip_name(path, _encoders(kind))
        if name is None:
            raise _foreign(path, kind)
        converted |= module.to_kohya(name)
    return converted


def own_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """{name of a module in a kohya file, whichever names of layers it has: as files of this kind have it}

    Args:
        names: Of modules; those of text encoders, and what is unknown, stay as they are.
        kind: As for `kohya_to_diffusers`.
    """
    known = list(names)
    layers = {name: dotted(name.removeprefix(_UNET)) for name in known if name.startswith(_UNET)}
    if facts_of(kind).has_published_layers:
        paths = {name: path for name, path in layers.items() if _LAYER.fullmatch(path)}
    else:
        others = {name: _or_none(path) for name, path in layers.items() if not _LAYER.fullmatch(path)}
        paths = {name: path for name, path in others.items() if path is not None and _LAYER.fullmatch(path)}
    own = _kohya_names(paths.values(), kind)
    return {name: own[paths[name]] if name in paths else name for name in known}


def other_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """{name of a module as kohya files of this kind have it: with the other naming of layers}. See `own_names`.

    Raises:
        CheckpointError: A layer that such models do not have.
    """
    known = list(names)
    layers = {name: dotted(name.removeprefix(_UNET)) for name in known if name.startswith(_UNET)}
    if facts_of(kind).has_published_layers:
        paths = _diffusers_names(layers.values(), kind)
    else:
        paths = to_published(_with_levels([path for path in layers.values() if _LAYER.fullmatch(path)], kind))
    if missing := [name for name, path in layers.items() if path not in paths]:
        raise _foreign(missing[0], kind)
    other = {name: _UNET + paths[path].replace(".", "_") for name, path in layers.items()}
    return {name: other.get(name, name) for name in known}


def published_layers(names: Iterable[str], kind: str) -> dict[str, str]:
    """{name of a module of a U-Net as kohya files of this kind have it: its published name, with points}

    Raises:
        CheckpointError: A layer that such models do not have.
    """
    known = list(names)
    if not facts_of(kind).has_published_layers:
        known_names = other_names(known, kind)
        return {name: dotted(known_names[name].removeprefix(_UNET)) for name in known}
    return {name: dotted(name.removeprefix(_UNET)) for name in known}


def dotted(name: str) -> str:
    """The name of a layer from what a kohya file makes of it: to_out_0 is to_out.0, and proj_in stays.

    A name that is no such layer's may come out as anything.
    """
    words = _WORD.findall(name)
    return ".".join(words) if "_".join(words) == name else name


def _diffusers_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """{name of a layer in files of this kind, with dots: in diffusers}, for those that are layers of a U-Net."""
    found, is_published = {}, facts_of(kind).has_published_layers
    for name in names:
        other = _or_none(name) if is_published and not _LAYER.fullmatch(name) else name
        if other is not None and _LAYER.fullmatch(other):
            found[name] = other
    return found


def _or_none(published: str) -> str | None:
    try:
        return to_diffusers([published])[published]
    except CheckpointError:
        return None


def _kohya_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """{name of a layer in diffusers: name of its module in files of this kind}"""
    known = list(names)
    own = {name: name for name in known}
    if facts_of(kind).has_published_layers:
        own = to_published(_with_levels(known, kind))
    return {name: _UNET + own[name].replace(".", "_") for name in known}


def _with_levels(names: list[str], kind: str) -> list[str]:
    """Also the attention that levels have which are made larger, whether or not a file has adapters there.

    In SDXL every such level has some, in SD1 and SD2 every one but the first.
    """
    found = {match[1] for match in map(_UPSAMPLER.match, names) if match}
    has_plain = not facts_of(kind).has_published_layers
    levels = sorted(found - {"up_blocks.0"} if has_plain else found)
    return [*names, *(f"{level}.attentions.0.proj_in" for level in levels)]


def _encoders(kind: str) -> Mapping[str, str]:
    """{prefix of a text encoder's modules in the kohya layout: in that of diffusers}"""
    return {facts.lora_prefix: f"{facts.folder}." for facts in facts_of(kind).encoders.values()}


def _foreign(name: str, kind: str) -> CheckpointError:
    models = facts_of(kind).lora_title
    return CheckpointError(f"{name} is no module of {models}. Convert LoRA files of the same family only.")
