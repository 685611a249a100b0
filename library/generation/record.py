"""Everything that makes one picture, as a plain value: what it is drawn from, and what its file says of itself."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from library.errors import UserError


@dataclass(frozen=True)
class NetworkUse:
    """A network beside or inside the model.

    Attributes:
        path: As it was given.
        name: File name without ending.
        hash: 12 digits, as A1111 shows them: of a .safetensors file SHA-256 of what follows the header.
        multiplier: Its strength.
        module: Of `--network_module`.
        args: Of `--network_args`, {key: value}.
    """

    path: str
    name: str
    hash: str
    multiplier: float
    module: str = "networks.lora"
    args: Mapping[str, str] | None = None


@dataclass(frozen=True)
class PictureSizes:
    """What SDXL is told of a picture, in pixels: of the prompt's picture and of the negative one."""

    original_width: int
    original_height: int
    original_width_negative: int
    original_height_negative: int
    crop_top: int = 0
    crop_left: int = 0


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """What makes one picture.

    Attributes:
        prompt: Its text, without line options.
        negative_prompt: What guidance leads away from.
        width: In pixels.
        height: In pixels.
        seed: Of its noise.
        steps: Of sampling.
        sampler: Name as of `--sampler`; "euler" for SD3.
        scale: Of guidance; 1 is without.
        negative_scale: Of the negative prompt alone; None where guidance leads away from it.
        strength: Of noise over `image`, 0..1; None where drawing begins at noise.
        image: Path of the picture that is drawn over; None.
        mask: Path of the picture that says where; None.
        family: "sd", "sdxl" or "sd3".
        model: Path of the model, as it was given.
        model_hash: SHA-256 of its file, 10 digits; empty for a folder.
        vae: Path of a VAE of its own; None.
        networks: In their order.
        embeddings: Paths of textual inversion embeddings.
        clip_skip: Of the option; None.
        clip_prompt: Of the prompt's line; None. Changes nothing.
        max_embeddings_multiples: Rows of 77 tokens that a text may fill.
        emb_normalize_mode: Of weighted words.
        sizes: What SDXL is told; None elsewhere.
        v_parameterization: What the model predicts.
        zero_terminal_snr: What its schedule ends in.
        precision: "float", "fp16" or "bf16".
        file_name: That the prompt's line asks for; None. No part of what makes the picture.
        extras: Settings of extras that act: highres fix, deep shrink and others, {name of the option: value}.
        settings: Other options that change the picture: encoders of SD3, how the VAE decodes and others, {name: value}.
        files: {path: hash} of the files beside the model, see `file_mark`.
    """

    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    seed: int
    steps: int
    sampler: str
    scale: float
    negative_scale: float | None = None
    strength: float | None = None
    image: str | None = None
    mask: str | None = None
    family: str
    model: str
    model_hash: str = ""
    vae: str | None = None
    networks: tuple[NetworkUse, ...] = ()
    embeddings: tuple[str, ...] = ()
    clip_skip: int | None = None
    clip_prompt: str | None = None
    max_embeddings_multiples: int = 1
    emb_normalize_mode: str = "original"
    sizes: PictureSizes | None = None
    v_parameterization: bool = False
    zero_terminal_snr: bool = False
    precision: str = "float"
    file_name: str | None = None
    extras: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None


def record_to_json(record: GenerationRecord) -> dict[str, Any]:
    """As plain values, for JSON. What is not said is left out."""
    return {key: value for key, value in asdict(record).items() if value not in (None, (), {})}


def record_from_json(content: object) -> GenerationRecord:
    """What `record_to_json` gave.

    Raises:
        UserError: It is something else.
    """
    record = _read(GenerationRecord, content, "it")
    assert isinstance(record, GenerationRecord)
    return record


def _read(hint: Any, value: object, name: str) -> Any:
    """A value of JSON as an annotation wants it.

    Args:
        hint: Of a field.
        value: What stands there.
        name: Of the field, for messages.

    Raises:
        UserError: It is of another type, or no finite number.
    """
    members = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in members:
            return None
        return _read(members[0], value, name)
    if is_dataclass(hint) and isinstance(value, dict):
        return _read_object(hint, value)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_read(members[0], item, name) for item in value)
    if typing.get_origin(hint) is Mapping and isinstance(value, dict):
        return {key: _read(members[1], item, f"{name} {key}") for key, item in value.items()}
    if hint is Any or (hint is float and _is_number(value)):
        return value
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise UserError(f"its text is no record of a picture ({name} is {json.dumps(value)[:40]})")


def _read_object(kind: Any, content: Mapping[str, object]) -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := content.keys() - hints.keys():
        raise UserError(f"its text is no record of a picture that this version knows ({', '.join(sorted(unknown))})")
    try:
        return kind(**{name: _read(hints[name], value, name) for name, value in content.items()})
    except TypeError as error:
        raise UserError(f"its text is no record of a picture ({error})") from error


def _is_number(value: object) -> bool:
    is_whole = type(value) is int and abs(value) < 2**64
    return is_whole or (isinstance(value, float) and math.isfinite(value))
