"""The settings of one run that only SD3 has, and how options give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.families.detect import SD3, SD3_DIFFUSERS, FileKind
from library.families.latent_family import LatentFamily, model_settings, path_or_none
from library.records import Size

ENCODER_NAMES = ("clip_l", "clip_g", "t5xxl")
_DROPOUTS = ("dropout=", "neuron_dropout=")  # of --network_args, of single values


@dataclass(frozen=True, kw_only=True)
class Sd3Settings(LatentFamily):
    """What the parts of `Sd3Family` have in common."""

    name: str = "sd3"
    denoiser_name: str = "mmdit"
    latent_channels: int = 16
    pixels_per_latent: int = 8
    bucket_multiple: int = 16
    encoder_names: tuple[str, ...] = ENCODER_NAMES
    sample_size: int = 1024
    sample_steps: int = 28
    sample_guidance: float = 4.5
    sample_multiple: int = 16
    samplers: tuple[str, ...] = ()
    prediction_type: str = "flow"

    clip_l: Path | None = None
    clip_g: Path | None = None
    t5xxl: Path | None = None

    t5_length: int = 256
    t5_device: str | None = None
    t5_dtype: str | None = None  # as the option has it
    apply_lg_attn_mask: bool = False
    apply_t5_attn_mask: bool = False
    merges_padding: bool = True  # where a mask makes it zero; dropout of single values would make its rows unequal
    dropout_rates: Mapping[str, float]
    pos_emb_random_crop_rate: float = 0.0
    enable_scaled_pos_embed: bool = False
    resolutions: tuple[Size, ...] = ()
    buckets: tuple[Size, ...] = ()
    flow: Mapping[str, Any]  # settings of the objective, which needs torch

    @property
    def file_kinds(self) -> tuple[FileKind, ...]:
        """What the file of a model may be."""
        return (SD3, SD3_DIFFUSERS)

    @property
    def masked(self) -> list[str]:
        """Encoders whose padding is set to zero."""
        masks = {"clip_l": self.apply_lg_attn_mask, "clip_g": self.apply_lg_attn_mask, "t5xxl": self.apply_t5_attn_mask}
        return [name for name, is_masked in masks.items() if is_masked]


def sd3_settings(options: Any) -> dict[str, Any]:
    """Arguments of `Sd3Family`, from the options of a script."""
    sd3 = options.sd3
    return {
        **model_settings(options),
        "clip_l": path_or_none(sd3.clip_l),
        "clip_g": path_or_none(sd3.clip_g),
        "t5xxl": path_or_none(sd3.t5xxl),
        "t5_length": sd3.t5xxl_max_token_length,
        "t5_device": sd3.t5xxl_device,
        "t5_dtype": sd3.t5xxl_dtype,
        "apply_lg_attn_mask": sd3.apply_lg_attn_mask,
        "apply_t5_attn_mask": sd3.apply_t5_attn_mask,
        "merges_padding": not _drops_single_values(options),
        "dropout_rates": {
            "clip_l": sd3.clip_l_dropout_rate,
            "clip_g": sd3.clip_g_dropout_rate,
            "t5xxl": sd3.t5_dropout_rate,
        },
        "pos_emb_random_crop_rate": sd3.pos_emb_random_crop_rate,
        "enable_scaled_pos_embed": sd3.enable_scaled_pos_embed,
        "flow": _flow_settings(options),
    }


def _flow_settings(options: Any) -> dict[str, Any]:
    """Of the objective."""
    own = ("weighting_scheme", "training_shift", "logit_mean", "logit_std", "mode_scale")
    limits = ("min_timestep", "max_timestep")
    return {
        **{name: getattr(options.sd3, name) for name in own},
        **{name: getattr(options.loss, name) for name in limits},
    }


def _drops_single_values(options: Any) -> bool:
    """Whether a network that trains has dropout that is drawn for each token."""
    network = getattr(options, "network", None)  # which not every script has
    if network is None:
        return False
    return bool(network.network_dropout) or any(item.startswith(_DROPOUTS) for item in network.network_args or ())
