"""Forge: a loader of ComfyUI's kind that knows no names of diffusers, but for the U-Nets in kohya's form."""

from __future__ import annotations

from library.loras.consumers.rules import (
    Content,
    Reading,
    diffusers_names,
    encoder_names,
    projection_names,
    published_names,
    read_known,
)


def read(content: Content) -> Reading:
    """See the module."""
    layers = content.layers
    known = published_names(layers) | published_names(layers, "diffusion_model.")
    known |= encoder_names(layers) | projection_names(layers)
    if layers.family != "sd3":
        known |= diffusers_names(layers, "lora_unet_")
    return read_known(content, known)
