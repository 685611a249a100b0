"""Options of Stable Diffusion 3 / 3.5, and of the scripts that train it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CacheOptions, ClipPairOptions, EncoderChoice, InversionOptions
from library.options.groups.scripts import (
    FullScriptOptions,
    InversionScriptOptions,
    NetworkScriptOptions,
    TrainingScriptOptions,
)
from library.options.spec import OptionGroup, ScriptText, opt

EIGHT_BITS: Mapping[str, str] = {"fp8": "fp8", "fp8_e4m3fn": "fp8", "int8": "int8"}  # of --t5xxl_dtype
_T5_IN_HALF = (
    "--train_t5xxl cannot be used with --mixed_precision fp16: T5's numbers exceed the range of fp16. Use bf16."
)
_DEVICE_NAME = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class Sd3Options(OptionGroup):
    """What only SD3 and SD3.5 have."""

    title: ClassVar[str] = "SD3 / SD3.5"

    clip_l: Path | None = opt(None, "CLIP-L file; goes before the one in the base model.")
    clip_g: Path | None = opt(None, "CLIP-G file; goes before the one in the base model.")
    t5xxl: Path | None = opt(None, "T5-XXL file; goes before the one in the base model.")
    t5xxl_max_token_length: int = opt(
        256, "Length of captions for T5; shorter ones are filled up, longer ones cut.", unit="tokens", minimum=1
    )
    apply_lg_attn_mask: bool = opt(False, "Hide padding from CLIP-L and CLIP-G, and set its outputs to zero.")
    apply_t5_attn_mask: bool = opt(False, "Hide padding from T5, and set its outputs to zero.")
    clip_l_dropout_rate: float = opt(
        0.0, "Chance of zeros in place of CLIP-L's outputs while training.", unit="0-1", minimum=0, maximum=1
    )
    clip_g_dropout_rate: float = opt(
        0.0, "Chance of zeros in place of CLIP-G's outputs while training.", unit="0-1", minimum=0, maximum=1
    )
    t5_dropout_rate: float = opt(
        0.0, "Chance of zeros in place of T5's outputs while training.", unit="0-1", minimum=0, maximum=1
    )
    t5xxl_device: str | None = opt(
        None, "Where T5 runs: cpu, cuda:1 or another device. Not set means with the denoiser."
    )
    t5xxl_dtype: str | None = opt(
        None,
        "What T5's weights are kept in; int8 and fp8 take half of what fp16 takes, and int8 keeps more of them. Not "
        "set means the format of --mixed_precision.",
        choices=("fp32", "fp16", "bf16", *EIGHT_BITS),
    )
    save_clip: bool = opt(False, "Save the CLIP encoders with the model.")
    save_t5xxl: bool = opt(False, "Save T5 with the model.")
    weighting_scheme: str = opt(
        "uniform",
        "Which noise levels count how much: logit_normal and mode draw some more often, sigma_sqrt and cosmap weight "
        "the loss, uniform and none do neither.",
        choices=("sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform"),
    )
    logit_mean: float = opt(0.0, "Mean of logit_normal: above 0 means more noise.")
    logit_std: float = opt(1.0, "Spread of logit_normal.", above=0)
    mode_scale: float = opt(
        1.29,
        "Strength of mode: above 0 draws middle noise levels more often.",
        unit="-1 to 1.75",
        minimum=-1,
        maximum=1.75,
    )
    training_shift: float = opt(
        1.0, "Moves the noise levels: above 1 towards pure noise, as larger pictures need. 1 changes nothing.", above=0
    )
    pos_emb_random_crop_rate: float = opt(
        0.0,
        "Chance of a random instead of the middle window of the position table, for SD3.5-medium.",
        unit="0-1",
        minimum=0,
        maximum=1,
    )
    enable_scaled_pos_embed: bool = opt(
        False, "Compute position tables for the resolutions of the datasets, for SD3.5-medium."
    )

    def check(self) -> Iterator[str]:
        if self.t5xxl_device is not None and not _DEVICE_NAME.fullmatch(self.t5xxl_device):
            yield f"--t5xxl_device needs a device such as cpu, cuda or cuda:1, got {self.t5xxl_device!r}."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.weighting_scheme != "logit_normal":
            yield "logit_mean", "only --weighting_scheme logit_normal uses it"
            yield "logit_std", "only --weighting_scheme logit_normal uses it"
        if self.weighting_scheme != "mode":
            yield "mode_scale", "only --weighting_scheme mode uses it"


@dataclass(frozen=True, kw_only=True)
class Sd3PartOptions(ClipPairOptions):
    """What of SD3 trains, and how fast."""

    train_t5xxl: bool = opt(False, "Train T5 too.")
    learning_rate_te3: float | None = opt(
        None, "Learning rate of T5; 0 does not train it. Not set means --learning_rate.", minimum=0
    )
    num_last_block_to_freeze: int | None = opt(
        None, "Do not train the last n blocks of the denoiser.", unit="blocks", minimum=0
    )

    @property
    def num_frozen_blocks(self) -> int:
        """How many of the denoiser's last blocks do not train."""
        return self.num_last_block_to_freeze or 0

    def without_effect(self) -> Iterator[tuple[str, str]]:
        yield from super().without_effect()
        if not self.train_t5xxl:
            yield "learning_rate_te3", "no --train_t5xxl"


@dataclass(frozen=True, kw_only=True)
class Sd3CacheOptions(CacheOptions):
    """Caches of a training of the whole model."""

    use_t5xxl_cache_only: bool = opt(False, "Means --cache_text_encoder_outputs: CLIPs that train run in every step.")
    skip_latents_validity_check: bool = opt(False, "Older name of --skip_cache_check.")

    @property
    def caches_text(self) -> bool:
        """Whether text encoder outputs are cached, in memory or on disk."""
        return super().caches_text or self.use_t5xxl_cache_only

    @property
    def skips_check(self) -> bool:
        """Whether cache files of sd-scripts are used as they are."""
        return super().skips_check or self.skip_latents_validity_check

    def remarks(self) -> Iterator[str]:
        yield from super().remarks()
        if self.use_t5xxl_cache_only and not super().caches_text:
            yield "--use_t5xxl_cache_only means --cache_text_encoder_outputs."


@dataclass(frozen=True, kw_only=True)
class Sd3ScriptOptions(TrainingScriptOptions):
    """What both scripts for SD3 and SD3.5 have."""

    sd3: Sd3Options = field(default_factory=Sd3Options)


@dataclass(frozen=True, kw_only=True)
class Sd3NetworkOptions(Sd3ScriptOptions, NetworkScriptOptions):
    """All options of sd3_train_network.py."""


@dataclass(frozen=True, kw_only=True)
class Sd3WordOptions(InversionOptions):
    """The word that is learned, by two encoders or by all three."""

    train_t5xxl: bool = opt(
        False, "T5 learns the word too. Otherwise only CLIP-L and CLIP-G do, and T5 reads captions without the word."
    )

    @property
    def encoder_arguments(self) -> Mapping[str, str]:
        """CLIP-L and CLIP-G; T5 where it is asked for."""
        return {"train_t5xxl": str(self.train_t5xxl)}


@dataclass(frozen=True, kw_only=True)
class Sd3InversionOptions(Sd3ScriptOptions, InversionScriptOptions):
    """All options of sd3_train_textual_inversion.py."""

    inversion: Sd3WordOptions = field(default_factory=Sd3WordOptions)

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.inversion.train_t5xxl and self.precision.mixed_precision == "fp16":
            yield _T5_IN_HALF


@dataclass(frozen=True, kw_only=True)
class Sd3FullOptions(Sd3ScriptOptions, FullScriptOptions):
    """All options of sd3_train.py."""

    full: Sd3PartOptions = field(default_factory=Sd3PartOptions)
    cache: Sd3CacheOptions = field(default_factory=Sd3CacheOptions)

    @property
    def encoders(self) -> tuple[EncoderChoice, ...]:
        """What is said of each text encoder."""
        full, is_saved = self.full, self.sd3.save_t5xxl
        t5_flags = "--train_t5xxl", "--save_t5xxl"
        return (
            *full.clip_choices(self.sd3.save_clip, "--save_clip"),
            EncoderChoice("t5xxl", full.train_t5xxl, full.learning_rate_te3, is_saved, t5_flags),
        )

    def _layout_of_base(self) -> str:
        return "safetensors"  # the base model is one, or a folder of them

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.full.train_t5xxl and self.precision.mixed_precision == "fp16":
            yield _T5_IN_HALF
        if self.full.train_t5xxl and self.cache.caches_text:
            yield (
                "--train_t5xxl cannot be used with cached text encoder outputs: a trained encoder has no fixed output. "
                "Leave one of them out."
            )


_FLOW = "SD3 predicts the flow; this is for models that predict noise"
_LORA_ONLY = "a LoRA file never holds text encoders"
_WORD_ONLY = "an embedding file never holds text encoders"

IGNORED_BY_ALL: Mapping[str, str] = {
    "v2": "SD3 has one text layout",
    "v_parameterization": _FLOW,
    "clip_skip": "SD3 always takes the last but one layer of CLIP",
    "max_token_length": "SD3 reads 77 tokens with CLIP, and --t5xxl_max_token_length with T5",
    "noise_offset": _FLOW,
    "noise_offset_random_strength": _FLOW,
    "adaptive_noise_scale": _FLOW,
    "multires_noise_iterations": _FLOW,
    "multires_noise_discount": _FLOW,
    "ip_noise_gamma": _FLOW,
    "ip_noise_gamma_random_strength": _FLOW,
    "zero_terminal_snr": _FLOW,
    "min_snr_gamma": _FLOW,
    "scale_v_pred_loss_like_noise_pred": _FLOW,
    "v_pred_like_loss": _FLOW,
    "debiased_estimation_loss": _FLOW,
    "weighted_captions": "SD3's encoders read captions without weights",
    "sample_sampler": "SD3 samples with Euler",
}
IGNORED_BY_FULL: Mapping[str, str] = {**IGNORED_BY_ALL, "use_safetensors": "--save_model_as says the format"}
IGNORED: Mapping[str, str] = {**IGNORED_BY_ALL, "save_clip": _LORA_ONLY, "save_t5xxl": _LORA_ONLY}
IGNORED_BY_INVERSION: Mapping[str, str] = {**IGNORED_BY_ALL, "save_clip": _WORD_ONLY, "save_t5xxl": _WORD_ONLY}

DESCRIPTION = "Train a LoRA, or another adapter, for Stable Diffusion 3 / 3.5."

EXAMPLE = (
    "accelerate launch sd3_train_network.py --pretrained_model_name_or_path=sd3.safetensors "
    "--dataset_config=my_pictures.toml --output_dir=out --output_name=my_lora --network_module=networks.lora "
    "--network_dim=16 --learning_rate=1e-4 --max_train_epochs=10 --mixed_precision=bf16 --gradient_checkpointing"
)

NETWORK_SCRIPT: ScriptText = {
    "prog": "sd3_train_network.py",
    "description": DESCRIPTION,
    "example": EXAMPLE,
    "ignored": IGNORED,
}

INVERSION_SCRIPT: ScriptText = {
    "prog": "sd3_train_textual_inversion.py",
    "description": "Learn a new word for Stable Diffusion 3 / 3.5 (textual inversion).",
    "example": (
        "accelerate launch sd3_train_textual_inversion.py --pretrained_model_name_or_path=sd3.safetensors "
        "--dataset_config=my_pictures.toml --output_dir=out --token_string=blarg --init_word=dog "
        "--num_vectors_per_token=4 --learning_rate=5e-3 --max_train_steps=1500 --mixed_precision=bf16 "
        "--gradient_checkpointing --cache_latents --save_model_as=safetensors"
    ),
    "ignored": IGNORED_BY_INVERSION,
}

FULL_SCRIPT: ScriptText = {
    "prog": "sd3_train.py",
    "description": "Train the whole of Stable Diffusion 3 / 3.5: the MMDiT and, where asked for, its text encoders.",
    "example": (
        "accelerate launch sd3_train.py --pretrained_model_name_or_path=sd3.safetensors --train_data_dir=pictures "
        "--caption_extension=.txt --resolution=1024 --output_dir=out --output_name=my_model --learning_rate=1e-5 "
        "--optimizer_type=AdamW8bit --max_train_epochs=10 --mixed_precision=bf16 --full_bf16 --gradient_checkpointing "
        "--cache_latents --cache_text_encoder_outputs"
    ),
    "ignored": IGNORED_BY_FULL,
}
