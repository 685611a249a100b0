"""Options of the tools that fill caches: those of a training, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

from library.families.sd3.options import Sd3Options
from library.families.sdxl.options import SdxlOptions
from library.options.groups import (
    CacheOptions,
    DatasetOptions,
    DistributedOptions,
    LoggingOptions,
    LossOptions,
    ModelOptions,
    PrecisionOptions,
    ValidationOptions,
)
from library.options.groups.scripts import NetworkScriptOptions
from library.options.groups.tools import CachingOptions, FamilyChoiceOptions, FluxOptions
from library.options.spec import ConfigOptions, OptionGroup, ScriptText, group_classes, group_options
from tools.family_options import AnyFamilyOptions

_FOR_TRAINING = "for training"
_FOR_TRAINING_ONLY = "what is cached does not depend on it"
_FOR_FLUX = "for FLUX"
_FOR_OTHER_CACHE = "for the other cache"

# Groups that say what is cached and how, and of other groups the options that do.
_USED_GROUPS = (ConfigOptions, FamilyChoiceOptions, ModelOptions, DatasetOptions, CacheOptions)
_USED: Mapping[type[OptionGroup], tuple[str, ...]] = {
    LoggingOptions: ("console_log_level", "console_log_file", "console_log_simple", "debug"),
    Sd3Options: (
        *("clip_l", "clip_g", "t5xxl", "t5xxl_max_token_length", "t5xxl_device", "t5xxl_dtype"),
        *("apply_lg_attn_mask", "apply_t5_attn_mask"),
    ),
    SdxlOptions: (),
    PrecisionOptions: ("mixed_precision", "no_half_vae"),
    DistributedOptions: ("ddp_timeout",),
    LossOptions: ("masked_loss",),
    ValidationOptions: ("validation_split", "validation_seed"),
}
_LATENTS_ONLY = ("cache_latents", "cache_latents_to_disk", "vae_batch_size", "no_half_vae")
_TEXTS_ONLY = (
    "cache_text_encoder_outputs",
    "cache_text_encoder_outputs_to_disk",
    "text_encoder_batch_size",
    "text_encoder_cache_variants",
)
_NEEDED_FOR_TRAINING = ("output_dir", "network_module")


def _unused(others: Iterable[str]) -> dict[str, str]:
    """Options of a training command that change nothing here, with the reason."""
    unused: dict[str, str] = {}
    for group in group_classes(AnyFamilyOptions).values():
        if group not in _USED_GROUPS:
            used = _USED.get(group, ())
            unused |= {name: _FOR_TRAINING for name in group_options(group) if name not in used}
    unused |= dict.fromkeys(others, _FOR_OTHER_CACHE)
    return unused | {item.name: _FOR_FLUX for item in fields(FluxOptions)}


@dataclass(frozen=True, kw_only=True)
class CachingToolOptions(AnyFamilyOptions):
    """All options of both tools: a command of each script that trains a network works as it is."""

    caching: CachingOptions = field(default_factory=CachingOptions)
    of_flux: FluxOptions = field(default_factory=FluxOptions)

    leading: ClassVar[tuple[str, ...]] = ("caching", "model")
    of_programs: ClassVar[Mapping[str, str]] = dict.fromkeys(NetworkScriptOptions.of_programs, _FOR_TRAINING_ONLY)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = tuple(
        name for name in NetworkScriptOptions.required if name not in _NEEDED_FOR_TRAINING
    )


@dataclass(frozen=True, kw_only=True)
class LatentCachingOptions(CachingToolOptions):
    """All options of tools/cache_latents.py."""

    unused: ClassVar[Mapping[str, str]] = _unused(_TEXTS_ONLY)
    preset: ClassVar[Mapping[str, object]] = {"cache_latents": True, "cache_latents_to_disk": True}


@dataclass(frozen=True, kw_only=True)
class TextCachingOptions(CachingToolOptions):
    """All options of tools/cache_text_encoder_outputs.py."""

    unused: ClassVar[Mapping[str, str]] = _unused(_LATENTS_ONLY)
    preset: ClassVar[Mapping[str, object]] = {
        "cache_text_encoder_outputs": True,
        "cache_text_encoder_outputs_to_disk": True,
    }


_FILES = "--pretrained_model_name_or_path=model.safetensors --dataset_config=my_pictures.toml --mixed_precision=bf16"

LATENT_CACHING_SCRIPT: ScriptText = {
    "prog": "tools/cache_latents.py",
    "description": "Encode every picture of a dataset once and keep the latents in files, before a training. Takes "
    "the options of the training, so that its command can be copied.",
    "example": f"accelerate launch tools/cache_latents.py {_FILES} --vae_batch_size=4",
    "ignored": {},
}

TEXT_CACHING_SCRIPT: ScriptText = {
    "prog": "tools/cache_text_encoder_outputs.py",
    "description": "Encode every caption of a dataset once and keep the outputs in files, before a training. Takes "
    "the options of the training, so that its command can be copied.",
    "example": f"accelerate launch tools/cache_text_encoder_outputs.py {_FILES} --text_encoder_batch_size=16",
    "ignored": {},
}
