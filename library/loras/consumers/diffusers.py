"""diffusers, as of 0.42: what `load_lora_weights` does, as far as files of this toolkit go.

For SD3 each key has to have "lora" in it, and what has no prefix of a component is passed over without a word. For
U-Nets kohya files are translated first; published names only for SDXL, and `add_embedding` of the other naming is
passed over.
"""

from __future__ import annotations

from library.errors import CheckpointError
from library.families.lora_layout import diffusers_modules
from library.loras.consumers.layers import Layers
from library.loras.consumers.rules import (
    Content,
    Place,
    Reading,
    diffusers_names,
    encoder_names,
    encoder_paths,
    projection_names,
    projection_paths,
    published_names,
    read_known,
)

_EMBEDDING = "add_embedding"
_COMPONENTS = {"sd": "unet.", "sdxl": "unet.", "sd3": "transformer."}


def read(content: Content) -> Reading:
    """See the module."""
    layers = content.layers
    prefixes = (_COMPONENTS[layers.family], "text_encoder.", "text_encoder_2.")
    if layers.family == "sd3" and any("lora" not in key for key in content.tensors):
        return Reading(refusal="refuses names of its own with an alpha beside them")
    if not any(key.startswith(prefixes) for key in content.tensors):
        return Reading(passed_over=content.modules()) if layers.family == "sd3" else _read_kohya(content)
    if any(".lora_down." in key for key in content.tensors):
        return Reading(refusal="ends with an IndexError at lora_down in names of its own")
    return _read_own(content, prefixes)


def _read_own(content: Content, prefixes: tuple[str, ...]) -> Reading:
    """Its own layout; an alpha is taken from the metadata that it writes itself."""
    own = {key: tensor for key, tensor in content.tensors.items() if key.startswith(prefixes)}
    try:
        pairs = diffusers_modules({key: own[key] for key in own if not key.endswith(".alpha")}, content.metadata)
    except CheckpointError as fault:
        return Reading(refusal=str(fault))
    layers = content.layers
    known = diffusers_names(layers, prefixes[0]) | encoder_paths(layers) | projection_paths(layers)
    paths = {name: name.replace("encoder.layers", "text_model.encoder.layers") for name in pairs}
    named = {name: name if name in known else paths[name] for name in pairs}
    read = [(known[named[name]], pair) for name, pair in pairs.items() if named[name] in known]
    taken = {name for name in pairs if named[name] in known}
    return Reading(read, [name for name in content.modules() if name not in taken])


def _read_kohya(content: Content) -> Reading:
    known = _kohya_names(content.layers)
    denoiser = [name for name in content.modules() if name.startswith("lora_unet_")]
    strange = [name for name in denoiser if name not in known and _EMBEDDING not in name]
    if strange:
        return Reading(refusal=f"cannot place {strange[0]}")
    return read_known(content, known, num_ends=1)


def _kohya_names(layers: Layers) -> dict[str, Place]:
    names = diffusers_names(layers, "lora_unet_")
    if layers.family == "sdxl":
        names = {name: place for name, place in names.items() if _EMBEDDING not in name} | published_names(layers)
    return names | encoder_names(layers) | projection_names(layers)
