"""ComfyUI: every name that it looks for, from the names of the model's weights. What it does not know it tells in its
log and passes over; an alpha is heeded in every form."""

from __future__ import annotations

from library.loras.consumers.layers import Layers
from library.loras.consumers.rules import (
    Content,
    Place,
    Reading,
    diffusers_names,
    encoder_names,
    encoder_paths,
    projection_names,
    published_names,
    read_known,
)

_SD3_PREFIXES = ("transformer.", "base_model.model.", "lora_transformer_", "lycoris_")
_UNET_PREFIXES = ("lora_unet_", "lycoris_")


def read(content: Content) -> Reading:
    """See the module."""
    return read_known(content, known_names(content.layers))


def known_names(layers: Layers) -> dict[str, Place]:
    """{name of a module in files: where it acts}"""
    known = published_names(layers) | published_names(layers, "diffusion_model.")
    known |= encoder_names(layers) | encoder_paths(layers) | projection_names(layers)
    if layers.family != "sd3":
        known |= _processors(layers)
    for prefix in _SD3_PREFIXES if layers.family == "sd3" else _UNET_PREFIXES:
        known |= diffusers_names(layers, prefix)
    return known


def _processors(layers: Layers) -> dict[str, Place]:
    """The names that diffusers had for attention once; of other layers they are those of today."""
    names = {}
    for prefix in ("", "unet."):
        for name, place in diffusers_names(layers, "unet.").items():
            own = name.removeprefix("unet.").replace(".to_", ".processor.to_")
            names[prefix + (own[:-2] if own.endswith(".to_out.0") else own)] = place
    return names
