"""What the options of scripts for U-Nets share: Stable Diffusion 1.x, 2.x and SDXL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from library.options.groups.scripts import FullScriptOptions, NetworkScriptOptions, TrainingScriptOptions

_OUTPUTS = "a text encoder that trains has no fixed output"


@dataclass(frozen=True, kw_only=True)
class UnetScriptOptions(TrainingScriptOptions):
    """What every script has whose model predicts noise, or the velocity."""

    def check(self) -> Iterator[str]:
        yield from super().check()
        loss, is_velocity = self.loss, self.model.v_parameterization
        if loss.adaptive_noise_scale is not None and loss.noise_offset is None:
            yield "--adaptive_noise_scale needs --noise_offset, which it is added to. Give both, or leave it out."
        if loss.scale_v_pred_loss_like_noise_pred and not is_velocity:
            yield (
                "--scale_v_pred_loss_like_noise_pred needs --v_parameterization: it is for models that predict v. "
                "Leave it out for others."
            )
        if loss.v_pred_like_loss is not None and is_velocity:
            yield (
                "--v_pred_like_loss and --v_parameterization exclude each other: it makes the loss of a model that "
                "predicts noise more like that of v. Leave it out."
            )

    def remarks(self) -> Iterator[str]:
        yield from super().remarks()
        if self.loss.zero_terminal_snr and not self.model.v_parameterization:
            yield (
                "--zero_terminal_snr without --v_parameterization: from pure noise nothing can be told of the picture "
                "by predicting the noise, so the last timesteps teach nothing."
            )


@dataclass(frozen=True, kw_only=True)
class UnetNetworkOptions(UnetScriptOptions, NetworkScriptOptions):
    """What scripts have that train adapters beside a U-Net."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "train_text_encoder": "text encoders get adapters too, unless --network_train_unet_only is given. Leave it out."
    }

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.cache.caches_text and self.network.network_train_text_encoder_only:
            yield (
                f"--cache_text_encoder_outputs does not go with --network_train_text_encoder_only: {_OUTPUTS}. Leave "
                "out the cache."
            )
        elif self.cache.caches_text and not self.network.network_train_unet_only:
            yield (
                f"--cache_text_encoder_outputs needs --network_train_unet_only: {_OUTPUTS}. Add it, or leave out the "
                "cache."
            )


@dataclass(frozen=True, kw_only=True)
class UnetFullOptions(UnetScriptOptions, FullScriptOptions):
    """What scripts have that train a whole U-Net model."""

    def check(self) -> Iterator[str]:
        yield from super().check()
        default = self.optimizer.learning_rate
        is_trained = [e.is_asked and (default if e.rate is None else e.rate) > 0 for e in self.encoders]
        if self.cache.caches_text and all(is_trained):
            yield f"--cache_text_encoder_outputs: {_OUTPUTS}. {self.encoder_advice}"

    @property
    def encoder_advice(self) -> str:
        """What to do where text encoders shall not train."""
        return "Leave out --train_text_encoder, or the cache."
