"""Finding the autoencoder in a weights file, from the header alone."""

from __future__ import annotations

import json

from library.checkpoint.weights import Part, WeightFiles, select_part
from library.errors import CheckpointError
from library.families.detect import SD1, SD2, SD3, SDXL, file_kind
from library.families.prefixes import names_under, prefix_of

PREFIXES = ("first_stage_model.", "vae.", "")

_MARK = "decoder.conv_in.weight"
_DIFFUSERS_MARK = "decoder.mid_block.resnets.0.conv1.weight"
_MODULES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_OWNERS = {SD3: "SD3", SDXL: "SDXL", SD1: "SD 1.x", SD2: "SD 2.x"}
_BY_CHANNELS = {4: "SDXL or SD 1.x / 2.x", 16: "SD3 or FLUX"}


def find_vae(source: WeightFiles) -> Part | None:
    """The autoencoder in any layout, bundled or alone; None where there is none."""
    names = vae_names(source)
    return select_part("vae", source, names, is_diffusers=_DIFFUSERS_MARK in names.values()) if names else None


def vae_names(source: WeightFiles) -> dict[str, str]:
    """{name in the file: name without prefix} of the tensors of the autoencoder; none where there is none."""
    prefix = prefix_of(source, _MARK, PREFIXES)
    return {} if prefix is None else names_under(source, prefix, _MODULES)


def check_vae(part: Part, latent_channels: int, wanted: str) -> None:
    """Refuse the autoencoder of another model.

    Args:
        part: From `find_vae`.
        latent_channels: What the denoiser takes.
        wanted: What to give instead, with its article.

    Raises:
        CheckpointError: What is said of it continues its path.
    """
    shapes = part.shapes()
    channels = shapes[_MARK][1]
    if channels != latent_channels:
        owner = _OWNERS.get(file_kind(part.source.shapes()), _BY_CHANNELS.get(channels, "another model"))
        raise CheckpointError(
            f"has the VAE of {owner}, with {channels} latent channels; this model needs {latent_channels}. "
            f"Give {wanted}, or none if the model bundles one."
        )
    if "encoder.conv_in.weight" not in shapes:
        raise CheckpointError("has only the decoder of a VAE. Training needs the encoder too.")


def check_scale(source: WeightFiles, scale: float) -> None:
    """Refuse the folder of an autoencoder whose settings say that its latents are scaled otherwise.

    Raises:
        CheckpointError: What is said of it continues its path.
    """
    path = source.path / "config.json"
    if not path.is_file():
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        found, has_mean = float(settings.get("scaling_factor") or scale), settings.get("latents_mean") is not None
    except (OSError, ValueError, TypeError, AttributeError):
        raise CheckpointError("has a config.json that is damaged. Download or copy it again.") from None
    if has_mean or abs(found - scale) > 1e-6:
        own = "with a mean and a deviation of each channel" if has_mean else f"by {found:g}"
        raise CheckpointError(
            f"is a VAE whose latents are scaled {own}; those of this model are scaled by {scale:g}. "
            "Give a VAE that fits the model."
        )
