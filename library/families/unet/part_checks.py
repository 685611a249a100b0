"""Whether the parts of a U-Net model (SD 1.x, SD 2.x, SDXL) are sound and fit each other, from headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from library.checkpoint.weights import Part
from library.errors import CheckpointError
from library.families.detect import file_kind
from library.families.unet.building import build_encoder, build_vae, outlined
from library.families.unet.kinds import KINDS
from library.families.unet.parts import MODEL_OPTION, TITLES, encoder_width


def check_owner(vae: Part, kind: str) -> None:
    """The VAEs of SDXL and of SD 1.x / 2.x have the same shapes; a whole model tells which it is.

    Raises:
        CheckpointError: It is of the other one. What is said of it continues its path.
    """
    owner = file_kind(vae.source.shapes())
    if owner.name in KINDS and KINDS[owner.name].vae_scale != KINDS[kind].vae_scale:
        raise CheckpointError(f"is {owner.title}, whose VAE is of another kind. Give a VAE that fits the model.")


def fault_of(part: Part, kind: str) -> str | None:
    """What is wrong with the names and shapes of a VAE or text encoder; None where they are right."""
    import torch

    try:
        if part.kind == "vae":
            build_vae(kind, outlined(part, torch.float32))
        else:
            build_encoder(kind, part, outlined(part, torch.float32))
    except CheckpointError as error:
        return str(error)
    return None


def check_widths(encoders: Mapping[str, Part], config: Mapping[str, Any]) -> None:
    """What the text encoders give has to be as wide as what the U-Net takes.

    Raises:
        CheckpointError: It is not.
    """
    widths = {name: encoder_width(part) for name, part in encoders.items()}
    if sum(widths.values()) != config["cross_attention_dim"]:
        found = " and ".join(f"{encoders[name].path} has a {TITLES[name]} of width {widths[name]}" for name in widths)
        raise CheckpointError(
            f"{MODEL_OPTION}: {found}, but the U-Net takes {config['cross_attention_dim']}. Use a complete model."
        )
