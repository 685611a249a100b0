"""What diffusers has really made of a LoRA file, in the words of the rules about it (library/loras/consumers)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from library.families.lora_layout import LoraPair
from library.loras.consumers import diffusers as rules
from library.loras.consumers.layers import Layers, layers_of
from library.loras.consumers.rules import Content, Place, Reading, diffusers_names
from library.loras.verifying import Effects, effects
from library.tensorfile import read_header, read_tensors


def content_of(path: Path, family: str) -> Content:
    """A file for the rules."""
    header = read_header(path)
    return Content(read_tensors(header), header.metadata, layers_of(family, header.shapes()))


def ruled(path: Path, family: str) -> Reading:
    """What the rules say that diffusers makes of a file."""
    return rules.read(content_of(path, family))


def real_effects(pipeline: Any, path: Path, family: str) -> Effects:
    """What a pipeline, into which the file was loaded, adds to its layers."""
    return effects(_added(pipeline, content_of(path, family).layers))


def _added(pipeline: Any, layers: Layers) -> Iterator[tuple[Place, LoraPair]]:
    denoiser = "transformer" if layers.family == "sd3" else "unet"
    names = diffusers_names(layers, f"{denoiser}.")
    for part in (denoiser, "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipeline, part, torch.nn.Module()).named_modules():
            if not isinstance(module, LoraLayer):
                continue
            delta = module.get_delta_weight("default_0").detach().flatten(1)
            inside = name if part == denoiser or name.startswith("text_model.") else f"text_model.{name}"
            place = names.get(f"{part}.{inside}", Place(f"{part}.{inside}"))
            yield place, LoraPair(torch.eye(delta.shape[1]), delta, 1.0)
