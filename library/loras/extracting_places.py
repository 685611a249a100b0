"""Where the weights of a whole model lie, by the names that LoRA files have for its layers.

A weight is read when it is asked for, and joined or cut as those names want it, so two models can be compared without
either being in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, StoredWeight, open_weights, stored_weights
from library.errors import CheckpointError
from library.families.detect import denoiser_place, file_kind
from library.families.sd3 import checkpoint as sd3_checkpoint
from library.families.sd3.key_map import ModulePair, depth_of, mmdit_modules, published_tensor
from library.families.unet import checkpoint as unet_checkpoint
from library.families.unet.building import num_used_layers
from library.loras.lora_metadata import SD1, SD2, SDXL
from library.models.clip_key_map import PROJECTION, open_clip_names
from library.unet_names import to_diffusers, to_published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.families.sd3.checkpoint import Sd3Files
    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.kinds import EncoderFacts

DENOISER = "lora_unet"
SD3 = "sd3"
_KINDS = {"sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "sd3": SD3, "sd3_diffusers": SD3}
_ARCHITECTURES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
_SD3_ENCODERS = {"lora_te1": "clip_l", "lora_te2": "clip_g", "lora_te3": "t5xxl"}
_OPTION = "--pretrained_model_name_or_path"  # of a training, whose checks are used here
_LAYERS = "text_model.encoder.layers."


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        stored: In the file; several are joined by rows.
        chunk: (which, of how many) equal chunks of the rows it is.
        is_swapped: The halves of its rows change places.
        is_transposed: Rows are columns.
    """

    stored: tuple[StoredWeight, ...]
    chunk: tuple[int, int] = (0, 1)
    is_swapped: bool = False
    is_transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        shapes = [stored.file.header.tensors[stored.key].shape for stored in self.stored]
        first = shapes[0]
        if not first or self.is_transposed:
            return first[::-1]
        return (sum(shape[0] for shape in shapes) // self.chunk[1], *first[1:])

    def read(self, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
        """The tensor; None is what it is stored in.

        Raises:
            CheckpointError: NaN or infinite values.
        """
        parts = [stored.wide(dtype, device) for stored in self.stored]
        whole = published_tensor(ModulePair("", (), self.is_swapped), parts)
        if self.is_transposed:
            return whole.t()
        return whole if self.chunk[1] == 1 else whole.chunk(self.chunk[1])[self.chunk[0]]


@dataclass(frozen=True)
class ModelPlaces:
    """A whole model.

    Attributes:
        path: File or folder.
        kind: "sd1", "sd2", "sdxl" or "sd3".
        title: As a sentence calls it.
        architecture: As modelspec.architecture has it.
        predicts_v: The files say that it predicts the velocity.
        parts: {prefix of a LoRA's modules: {name of a tensor, as LoRA files call its layer but with dots: place}}, for
            the denoiser and the text encoders.
    """

    path: Path
    kind: str
    title: str
    architecture: str
    predicts_v: bool
    parts: Mapping[str, Mapping[str, Place]]

    @property
    def files(self) -> set[Path]:
        """All files that are read."""
        places = (place for part in self.parts.values() for place in part.values())
        return {stored.file.header.path for place in places for stored in place.stored}

    @property
    def is_in_fp8(self) -> bool:
        """Whether weights are rounded to fp8."""
        return any(weight.is_fp8 for place in self.parts[DENOISER].values() for weight in place.stored)


def find_places(path: Path, option: str, *, allow_pickle: bool = False) -> ModelPlaces:
    """Read the headers of a model.

    Args:
        path: One file, or a diffusers folder.
        option: That names it.
        allow_pickle: Also read .ckpt files that hold more than tensors.

    Raises:
        CheckpointError: It cannot be used, or is no model of a known family.
    """
    kind = file_kind(open_weights(denoiser_place(path), option, allow_pickle=allow_pickle).shapes())
    if kind.name not in _KINDS:
        raise CheckpointError(f"{option}: {path} is {kind.title}. Give a whole model of SD1, SD2, SDXL or SD3.")
    try:
        if _KINDS[kind.name] == SD3:
            sd3_files = sd3_checkpoint.inspect_files(path, allow_pickle=allow_pickle)
            parts, predicts_v = _sd3_parts(sd3_files), False
            architecture = f"stable-diffusion-3-{sd3_files.variant}"
        else:
            unet_files = unet_checkpoint.inspect_files(path, kinds=(kind.name,), allow_pickle=allow_pickle)
            parts, predicts_v = _unet_parts(unet_files), "v_pred" in unet_files.marks
            architecture = _ARCHITECTURES[kind.name]
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(_OPTION, option)) from error
    return ModelPlaces(path, _KINDS[kind.name], kind.title, architecture, predicts_v, parts)


def _sd3_parts(files: Sd3Files) -> dict[str, Mapping[str, Place]]:
    found: dict[str, Mapping[str, Place]] = {DENOISER: _mmdit_places(files.denoiser)}
    for prefix, name in _SD3_ENCODERS.items():
        part: Part | None = getattr(files, name)
        if part is not None:
            found[prefix] = _own_places(part)
    return found


def _mmdit_places(part: Part) -> dict[str, Place]:
    stored = _by_name(part)
    if not part.is_diffusers:
        return {name: Place((weight,)) for name, weight in stored.items()}
    places = {}
    for pair in mmdit_modules(depth_of(stored)):
        for suffix in ("weight", "bias"):
            keys = [f"{name}.{suffix}" for name in pair.diffusers]
            if all(key in stored for key in keys):
                joined = tuple(stored[key] for key in keys)
                places[f"{pair.published}.{suffix}"] = Place(joined, is_swapped=pair.is_swapped)
    return places


def _unet_parts(files: UnetFiles) -> dict[str, Mapping[str, Place]]:
    found: dict[str, Mapping[str, Place]] = {DENOISER: _unet_places(files)}
    for name, facts in files.facts.encoders.items():
        found[facts.lora_prefix.removesuffix("_")] = _clip_places(files.encoders[name], facts)
    return found


def _unet_places(files: UnetFiles) -> dict[str, Place]:
    own = _own_places(files.unet)
    if files.unet.is_diffusers == (not files.facts.has_published_layers):
        return own
    names = to_published(own) if files.unet.is_diffusers else to_diffusers(own)
    return {names[name]: place for name, place in own.items()}


def _clip_places(part: Part, facts: EncoderFacts) -> dict[str, Place]:
    own = _own_places(part)
    if part.is_diffusers:
        return own
    places = {}
    for open_name, names in open_clip_names(own).items():
        for index, hf_name in enumerate(names):
            places[hf_name] = replace(own[open_name], chunk=(index, len(names)), is_transposed=open_name == PROJECTION)
    if not facts.has_unused_layer:
        return places
    used = num_used_layers(part)
    return {key: place for key, place in places.items() if used is None or _layer_of(key) < used}


def _layer_of(name: str) -> int:
    return int(name.removeprefix(_LAYERS).partition(".")[0]) if name.startswith(_LAYERS) else -1


def _own_places(part: Part) -> dict[str, Place]:
    return {name: Place((weight,)) for name, weight in _by_name(part).items()}


def _by_name(part: Part) -> dict[str, StoredWeight]:
    return {weight.name: weight for weight in stored_weights(part)}


def layers_of(places: Iterable[str]) -> list[str]:
    """Names of layers with a weight, from names of tensors."""
    return [name.removesuffix(".weight") for name in places if name.endswith(".weight")]
