"""Options about the adapters that are trained beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.groups.optimizer import malformed_arguments
from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(OptionGroup):
    """The adapters that are trained beside the model."""

    title: ClassVar[str] = "Network"

    network_module: str | None = opt(
        None,
        "Python module that makes the adapters: networks.lora for every model; networks.lora_sd3; networks.dylora, "
        "networks.lora_fa and networks.oft for Stable Diffusion 1.x, 2.x and SDXL; lycoris.kohya.",
    )
    network_dim: int | None = opt(None, "Rank of the adapters. Not set means 4.", minimum=1)
    network_alpha: float = opt(
        1.0, "The output of an adapter is scaled by alpha / rank; 0 means alpha = rank.", minimum=0
    )
    network_dropout: float | None = opt(
        None, "Chance of dropping a value inside an adapter while training.", unit="0-1", minimum=0, maximum=1
    )
    network_args: tuple[str, ...] | None = opt(
        None, "Further arguments of the module, see the guide of the script.", metavar="KEY=VALUE"
    )
    network_weights: Path | None = opt(None, "Adapter file to begin with.")
    dim_from_weights: bool = opt(False, "Take ranks and alphas from --network_weights.")
    network_train_unet_only: bool = opt(False, "Train no text encoder, only the denoiser's adapters.")
    network_train_text_encoder_only: bool = opt(False, "Train only the text encoders' adapters.")
    unet_lr: float | None = opt(
        None, "Learning rate of the denoiser's adapters; 0 trains none. Not set means --learning_rate.", minimum=0
    )
    text_encoder_lr: tuple[float, ...] | None = opt(
        None,
        "Learning rates of the text encoders' adapters: one for all, or one for each encoder in order; 0 trains none. "
        "Not set means --learning_rate.",
        minimum=0,
    )
    scale_weight_norms: float | None = opt(
        None, "After each step adapters are scaled down to this norm.", unit="about 1", above=0
    )
    base_weights: tuple[Path, ...] | None = opt(None, "Adapter files to merge into the model before training.")
    base_weights_multiplier: tuple[float, ...] | None = opt(
        None, "Strength of each file of --base_weights. Not set means 1."
    )
    verify_export: bool = opt(
        False,
        "Read the final file back and check that ComfyUI, Forge, A1111 and diffusers, as far as they read such files, "
        "make of it what was trained.",
    )

    def check(self) -> Iterator[str]:
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            yield (
                "--network_train_unet_only and --network_train_text_encoder_only leave nothing to train. "
                "Keep one of them, or none to train both."
            )
        if self.network_dropout == 1:
            yield "--network_dropout must be below 1: at 1 nothing is left to train."
        if self.dim_from_weights and self.network_weights is None:
            yield "--dim_from_weights needs --network_weights."
        if self.text_encoder_lr is not None and len(self.text_encoder_lr) > 3:
            yield f"--text_encoder_lr takes at most 3 rates, got {len(self.text_encoder_lr)}."
        num_weights, num_multipliers = len(self.base_weights or ()), len(self.base_weights_multiplier or ())
        if num_multipliers > num_weights:
            given = f"{num_multipliers} number{'s' * (num_multipliers != 1)}"
            files = f"{num_weights} file{'s' * (num_weights != 1)}"
            yield f"--base_weights_multiplier has {given} for {files} of --base_weights."
        if self._nothing_trains():
            yield "--unet_lr and --text_encoder_lr of 0 leave nothing to train. Give one of them a rate above 0."
        yield from malformed_arguments("--network_args", self.network_args)

    def _nothing_trains(self) -> bool:
        is_denoiser_off = self.unet_lr == 0 or self.network_train_text_encoder_only
        is_text_off = self.network_train_unet_only or (self.text_encoder_lr and not any(self.text_encoder_lr))
        return bool(is_denoiser_off and is_text_off) and not (
            self.network_train_unet_only and self.network_train_text_encoder_only
        )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.dim_from_weights:
            yield "network_dim", "--dim_from_weights takes it from the file"
            yield "network_alpha", "--dim_from_weights takes it from the file"
        if self.network_train_unet_only:
            yield "text_encoder_lr", "--network_train_unet_only trains no text encoder"
        if self.network_train_text_encoder_only:
            yield "unet_lr", "--network_train_text_encoder_only trains text encoders only"
