"""Options of the scripts that train Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from library.families.unet.options import UnetFullOptions, UnetNetworkOptions, UnetScriptOptions
from library.options.groups import EncoderChoice, FullOptions, OlderComputeOptions
from library.options.groups.scripts import InversionScriptOptions
from library.options.spec import ScriptText, opt

NEVER = -1  # of --stop_text_encoder_training


@dataclass(frozen=True, kw_only=True)
class SdScriptOptions(UnetScriptOptions):
    """What all scripts for Stable Diffusion 1.x and 2.x have."""

    def remarks(self) -> Iterator[str]:
        yield from super().remarks()
        if self.model.v2 and self.model.clip_skip is not None:
            yield (
                f"--clip_skip {self.model.clip_skip} with --v2: without it Stable Diffusion 2.x reads the last but one "
                "layer of its text encoder, and layers are counted from there."
            )


@dataclass(frozen=True, kw_only=True)
class SdNetworkOptions(SdScriptOptions, UnetNetworkOptions):
    """All options of train_network.py."""

    def check(self) -> Iterator[str]:
        yield from super().check()
        rates = self.network.text_encoder_lr or ()
        if len(rates) > 1:
            yield f"--text_encoder_lr takes one rate, for the one text encoder, got {len(rates)}."


@dataclass(frozen=True, kw_only=True)
class SdInversionOptions(SdScriptOptions, InversionScriptOptions):
    """All options of train_textual_inversion.py."""


@dataclass(frozen=True, kw_only=True)
class FineTunePartOptions(FullOptions):
    """What of the model fine_tune.py trains, and how fast."""

    train_text_encoder: bool = opt(False, "Train the text encoder too.")
    learning_rate_te: float | None = opt(
        None, "Learning rate of the text encoder; 0 does not train it. Not set means --learning_rate.", minimum=0
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.train_text_encoder:
            yield "learning_rate_te", "no --train_text_encoder"


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions(SdScriptOptions, UnetFullOptions):
    """All options of fine_tune.py."""

    full: FineTunePartOptions = field(default_factory=FineTunePartOptions)
    compute: OlderComputeOptions = field(default_factory=OlderComputeOptions)

    @property
    def encoders(self) -> tuple[EncoderChoice, ...]:
        """What is said of the text encoder. A saved model has it."""
        full = self.full
        flags = "--train_text_encoder", None
        return (EncoderChoice("clip", full.train_text_encoder, full.learning_rate_te, True, flags),)


@dataclass(frozen=True, kw_only=True)
class DreamBoothPartOptions(FullOptions):
    """What of the model train_db.py trains, and how fast."""

    learning_rate_te: float | None = opt(
        None, "Learning rate of the text encoder; 0 does not train it. Not set means --learning_rate.", minimum=0
    )
    stop_text_encoder_training: int | None = opt(
        None,
        "The text encoder trains no more after this many steps; -1 never trains it. Not set means to the end.",
        unit="steps",
        minimum=NEVER,
    )
    no_token_padding: bool = opt(
        False, "Do not fill up captions.", no_effect="the text encoder always reads rows of 77 tokens"
    )

    @property
    def trains_text_encoder(self) -> bool:
        """Whether it trains at the beginning."""
        return self.stop_text_encoder_training is None or self.stop_text_encoder_training > 0

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.trains_text_encoder:
            yield "learning_rate_te", f"--stop_text_encoder_training {self.stop_text_encoder_training} trains none"


@dataclass(frozen=True, kw_only=True)
class DreamBoothOptions(SdScriptOptions, UnetFullOptions):
    """All options of train_db.py."""

    full: DreamBoothPartOptions = field(default_factory=DreamBoothPartOptions)

    project: ClassVar[str] = "dreambooth"
    elsewhere: ClassVar[Mapping[str, str]] = {
        "train_text_encoder": "the text encoder trains unless --stop_text_encoder_training -1 is given. Leave it out."
    }

    @property
    def encoders(self) -> tuple[EncoderChoice, ...]:
        """What is said of the text encoder. It trains unless told otherwise, and a saved model has it."""
        full = self.full
        num_steps = full.stop_text_encoder_training if full.trains_text_encoder else None
        return (EncoderChoice("clip", full.trains_text_encoder, full.learning_rate_te, True, (None, None), num_steps),)

    @property
    def encoder_advice(self) -> str:
        """What to do where the text encoder shall not train."""
        return "Give --stop_text_encoder_training -1, or leave out the cache."


IGNORED: Mapping[str, str] = {}

SD_NETWORK_SCRIPT: ScriptText = {
    "prog": "train_network.py",
    "description": "Train a LoRA, or another adapter, for Stable Diffusion 1.x or 2.x.",
    "example": (
        "accelerate launch train_network.py --pretrained_model_name_or_path=v1-5.safetensors "
        "--dataset_config=my_pictures.toml --output_dir=out --output_name=my_lora --network_module=networks.lora "
        "--network_dim=16 --learning_rate=1e-4 --max_train_epochs=10 --mixed_precision=bf16 --clip_skip=2"
    ),
    "ignored": IGNORED,
}

SD_INVERSION_SCRIPT: ScriptText = {
    "prog": "train_textual_inversion.py",
    "description": "Learn a new word for Stable Diffusion 1.x or 2.x (textual inversion).",
    "example": (
        "accelerate launch train_textual_inversion.py --pretrained_model_name_or_path=v1-5.safetensors "
        "--dataset_config=my_pictures.toml --output_dir=out --token_string=blarg --init_word=dog "
        "--num_vectors_per_token=4 --learning_rate=5e-3 --max_train_steps=1500 --mixed_precision=bf16 --cache_latents "
        "--save_model_as=safetensors"
    ),
    "ignored": IGNORED,
}

FINE_TUNE_SCRIPT: ScriptText = {
    "prog": "fine_tune.py",
    "description": "Train the whole of Stable Diffusion 1.x or 2.x: the U-Net and, where asked for, its text encoder.",
    "example": (
        "accelerate launch fine_tune.py --pretrained_model_name_or_path=v1-5.safetensors --in_json=metadata.json "
        "--train_data_dir=pictures --resolution=512 --output_dir=out --output_name=my_model --learning_rate=5e-6 "
        "--max_train_epochs=10 --train_batch_size=4 --mixed_precision=bf16 --gradient_checkpointing --cache_latents"
    ),
    "ignored": IGNORED,
}

DREAM_BOOTH_SCRIPT: ScriptText = {
    "prog": "train_db.py",
    "description": "Train the whole of Stable Diffusion 1.x or 2.x, text encoder included, on pictures of one thing.",
    "example": (
        "accelerate launch train_db.py --pretrained_model_name_or_path=v1-5.safetensors --train_data_dir=pictures "
        "--reg_data_dir=others --resolution=512 --output_dir=out --output_name=my_model --learning_rate=1e-6 "
        "--max_train_steps=1600 --mixed_precision=bf16 --gradient_checkpointing --cache_latents"
    ),
    "ignored": IGNORED,
}
