"""Where in a model's file the weight of each LoRA module lies, from its header and static tables.

A module's weight may be a whole tensor, some rows of one (query, key and value are one tensor in open_clip's encoders),
or spread over several (an MMDiT in the layout of diffusers has three for the module `attn_qkv`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from library.checkpoint.weights import Part, WeightFiles
from library.errors import CheckpointError
from library.families.detect import FileKind
from library.families.unet.kinds import KINDS
from library.models.clip_key_map import PROJECTION, open_clip_names

_MODEL, _EMA = "model.", "model_ema."
_WEIGHT, _UNET = ".weight", "lora_unet_"
_SD3_ENCODERS = {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5xxl": "lora_te3_"}
_TITLES = {"clip": "CLIP", "clip_l": "CLIP-L", "clip_g": "CLIP-G", "t5xxl": "T5"}


@dataclass(frozen=True)
class Place:
    """Part of a tensor, and the part of a module's change that goes there.

    Attributes:
        module: As kohya files of the family have it.
        rows: (which of the equal pieces of the tensor's rows, of how many)
        change: The same of the rows of the change.
        is_swapped: The two halves of the rows are exchanged there.
        is_transposed: The tensor is the transposed weight.
    """

    module: str
    rows: tuple[int, int] = (0, 1)
    change: tuple[int, int] = (0, 1)
    is_swapped: bool = False
    is_transposed: bool = False


@dataclass(frozen=True)
class Places:
    """Of all modules that a file has weights for.

    Attributes:
        by_tensor: {name of a tensor in the file: what goes there}
        missing: {beginning of module names: text encoder that the file does not have}
    """

    by_tensor: Mapping[str, tuple[Place, ...]]
    missing: Mapping[str, str]

    def modules(self) -> set[str]:
        """Names of all modules."""
        return {place.module for places in self.by_tensor.values() for place in places}


def family_of_model(kind: FileKind) -> str | None:
    """The family of LoRAs for a model file; None where it is no model that LoRAs are for."""
    if kind.name in KINDS:
        return KINDS[kind.name].family
    return "sd3" if kind.name in ("sd3", "sd3_diffusers") else None


def places_in(source: WeightFiles, kind: FileKind) -> Places:
    """Find the weights.

    Args:
        source: A file of a model.
        kind: What it holds.

    Raises:
        CheckpointError: The file is incomplete, or has tensors that such a model does not have.
    """
    if kind.name in KINDS:
        denoiser, encoders, prefixes = _unet_parts(source, kind.name)
    else:
        denoiser, encoders, prefixes = _sd3_parts(source)
    by_tensor = dict(denoiser)
    for name, part in encoders.items():
        if part is not None:
            by_tensor |= _encoder_places(part, prefixes[name])
    by_tensor |= _averages(by_tensor, source)
    missing = {prefixes[name]: _TITLES[name] for name, part in encoders.items() if part is None}
    return Places(by_tensor, missing)


def _averages(by_tensor: Mapping[str, tuple[Place, ...]], source: WeightFiles) -> dict[str, tuple[Place, ...]]:
    """The same of averaged weights (EMA), which some files have beside those of the U-Net, under names without dots."""
    twins = {key: _EMA + key.removeprefix(_MODEL).replace(".", "") for key in by_tensor if key.startswith(_MODEL)}
    return {twins[key]: by_tensor[key] for key in twins if twins[key] in source.tensors}


_Found = tuple[Mapping[str, tuple[Place, ...]], Mapping[str, Part | None], Mapping[str, str]]


def _unet_parts(source: WeightFiles, kind: str) -> _Found:
    from library.families.unet.parts import find_encoder, select_denoiser

    facts = KINDS[kind]
    part = select_denoiser(source)
    names = _weights(part)
    own = _layer_names(names.values(), is_diffusers=part.is_diffusers, wants_published=facts.has_published_layers)
    denoiser = {key: (Place(_UNET + own[layer].replace(".", "_")),) for key, layer in names.items()}
    encoders = {name: find_encoder(name, source, is_alone=False) for name in facts.encoders}
    return denoiser, encoders, {name: facts.encoders[name].lora_prefix for name in facts.encoders}


def _layer_names(names: Iterable[str], *, is_diffusers: bool, wants_published: bool) -> Mapping[str, str]:
    from library.unet_names import to_diffusers, to_published

    known = list(names)
    if is_diffusers != wants_published:
        return {name: name for name in known}
    return to_published(known) if is_diffusers else to_diffusers(known)


def _sd3_parts(source: WeightFiles) -> _Found:
    from library.families.sd3.key_map import mmdit_modules
    from library.families.sd3.parts import find_denoiser, find_part

    part, config = find_denoiser(source)
    own = {layer: key for key, layer in _weights(part).items()}
    denoiser: dict[str, tuple[Place, ...]] = {}
    for pair in mmdit_modules(config.depth):
        module = _UNET + pair.published.replace(".", "_")
        if not part.is_diffusers and pair.published in own:
            denoiser[own[pair.published]] = (Place(module),)
        count = len(pair.diffusers)
        for index, name in enumerate(pair.diffusers if part.is_diffusers else ()):
            if name in own:
                denoiser[own[name]] = (Place(module, change=(index, count), is_swapped=pair.is_swapped),)
    encoders = {name: find_part(name, source, config, is_bundled=True) for name in _SD3_ENCODERS}
    return denoiser, encoders, _SD3_ENCODERS


def _encoder_places(part: Part, prefix: str) -> dict[str, tuple[Place, ...]]:
    if part.kind in ("clip", "clip_l", "clip_g") and not part.is_diffusers and _is_open_clip(part):
        return _open_clip_places(part, prefix)
    return {key: (Place(prefix + layer.replace(".", "_")),) for key, layer in _weights(part).items()}


def _is_open_clip(part: Part) -> bool:
    return any(name.startswith("transformer.resblocks.") for name in part.names.values())


def _open_clip_places(part: Part, prefix: str) -> dict[str, tuple[Place, ...]]:
    table = open_clip_names(part.names.values())
    places: dict[str, tuple[Place, ...]] = {}
    for key, name in part.names.items():
        others = table[name]
        if len(part.source.tensors[key].shape) < 2 or not all(other.endswith(_WEIGHT) for other in others):
            continue
        modules = [prefix + other.removesuffix(_WEIGHT).replace(".", "_") for other in others]
        places[key] = tuple(
            Place(module, rows=(index, len(modules)), is_transposed=name == PROJECTION)
            for index, module in enumerate(modules)
        )
    return places


def _weights(part: Part) -> dict[str, str]:
    """{name in the file: name of the layer} of what has more than one axis."""
    names = {key: name for key, name in part.names.items() if name.endswith(_WEIGHT)}
    return {key: name.removesuffix(_WEIGHT) for key, name in names.items() if len(part.source.tensors[key].shape) > 1}


def check_modules(modules: Iterable[str], places: Places, what: str, model: str) -> None:
    """See whether the model has a weight for each module of a file.

    Args:
        modules: Of the file.
        places: Of the model.
        what: The file, for messages.
        model: The same of the model.

    Raises:
        CheckpointError: It has not.
    """
    left = sorted(set(modules) - places.modules())
    if not left:
        return
    if title := next((title for start, title in places.missing.items() if left[0].startswith(start)), None):
        raise CheckpointError(
            f"{what} changes the text encoder {title}, which {model} does not have. Give a model with its text "
            "encoders, or leave these modules out with --skip_text_encoders."
        )
    raise CheckpointError(
        f"{what} does not fit {model}: {len(left)} of its modules have no weight there ({left[0]}). "
        "Give a LoRA of such a model."
    )
