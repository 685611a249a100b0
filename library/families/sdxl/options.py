"""Options of SDXL, and of the scripts that train it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from library.families.unet.options import UnetFullOptions, UnetNetworkOptions, UnetScriptOptions
from library.options.groups import ClipPairOptions, EncoderChoice, OlderComputeOptions
from library.options.groups.lllite import ConditionedDatasetOptions, LlliteOptions
from library.options.groups.scripts import InversionScriptOptions
from library.options.spec import OptionGroup, ScriptText, opt
from library.records import Size

DEFAULT_SIZE = Size(1024, 1024)
_NUM_ENCODERS = 2


@dataclass(frozen=True, kw_only=True)
class SdxlOptions(OptionGroup):
    """What only SDXL has."""

    title: ClassVar[str] = "SDXL"

    sdxl_crop_compat: bool = opt(
        False,
        "Tell the U-Net the crop of a picture as sd-scripts does, and not the true one: to go on with what was trained "
        "there.",
    )


@dataclass(frozen=True, kw_only=True)
class SdxlScriptOptions(UnetScriptOptions):
    """What both scripts for SDXL have."""

    sdxl: SdxlOptions = field(default_factory=SdxlOptions)

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.model.v2:
            yield "--v2 is for Stable Diffusion 2.x, and this is for SDXL. Leave it out, or use train_network.py."

    def dataset_defaults(self) -> dict[str, object]:
        """What applies where the dataset file says nothing, by key of that file. SDXL is made for 1024 pixels."""
        return {"resolution": DEFAULT_SIZE, **super().dataset_defaults()}


@dataclass(frozen=True, kw_only=True)
class SdxlNetworkOptions(SdxlScriptOptions, UnetNetworkOptions):
    """All options of sdxl_train_network.py."""

    def check(self) -> Iterator[str]:
        yield from super().check()
        rates = self.network.text_encoder_lr or ()
        if len(rates) > _NUM_ENCODERS:
            yield f"--text_encoder_lr takes at most 2 rates, for CLIP-L and CLIP-G, got {len(rates)}."


@dataclass(frozen=True, kw_only=True)
class SdxlInversionOptions(SdxlScriptOptions, InversionScriptOptions):
    """All options of sdxl_train_textual_inversion.py."""


@dataclass(frozen=True, kw_only=True)
class SdxlLlliteOptions(SdxlScriptOptions):
    """All options of sdxl_train_control_net_lllite.py."""

    network: LlliteOptions = field(default_factory=LlliteOptions)
    data: ConditionedDatasetOptions = field(default_factory=ConditionedDatasetOptions)

    freezes_model: ClassVar[bool] = True
    project: ClassVar[str] = "lllite_control_net_train"

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.optimizer.learning_rate == 0:
            yield "--learning_rate 0 leaves nothing to train. Give a rate above 0."
        is_alone = self.data.dataset_config is None and self.data.conditioning_data_dir is None
        if is_alone and (self.data.train_data_dir or self.data.in_json):
            yield (
                "--conditioning_data_dir is missing: it names the folder with a conditioning picture of the same name "
                "for every picture."
            )


@dataclass(frozen=True, kw_only=True)
class SdxlFullOptions(SdxlScriptOptions, UnetFullOptions):
    """All options of sdxl_train.py."""

    full: ClipPairOptions = field(default_factory=ClipPairOptions)
    compute: OlderComputeOptions = field(default_factory=OlderComputeOptions)

    elsewhere: ClassVar[Mapping[str, str]] = {
        "learning_rate_te": "give --learning_rate_te1 for CLIP-L and --learning_rate_te2 for CLIP-G."
    }

    @property
    def encoders(self) -> tuple[EncoderChoice, ...]:
        """What is said of each text encoder. A saved model has both."""
        return self.full.clip_choices(True, None)


IGNORED: Mapping[str, str] = {"clip_skip": "SDXL always takes the last but one layer of both text encoders"}

SDXL_NETWORK_SCRIPT: ScriptText = {
    "prog": "sdxl_train_network.py",
    "description": "Train a LoRA, or another adapter, for SDXL.",
    "example": (
        "accelerate launch sdxl_train_network.py --pretrained_model_name_or_path=sdxl.safetensors "
        "--dataset_config=my_pictures.toml --output_dir=out --output_name=my_lora --network_module=networks.lora "
        "--network_dim=16 --network_train_unet_only --learning_rate=1e-4 --max_train_epochs=10 --mixed_precision=bf16 "
        "--gradient_checkpointing --cache_latents --cache_text_encoder_outputs"
    ),
    "ignored": IGNORED,
}

SDXL_INVERSION_SCRIPT: ScriptText = {
    "prog": "sdxl_train_textual_inversion.py",
    "description": "Learn a new word for SDXL (textual inversion).",
    "example": (
        "accelerate launch sdxl_train_textual_inversion.py --pretrained_model_name_or_path=sdxl.safetensors "
        "--dataset_config=my_pictures.toml --output_dir=out --token_string=blarg --init_word=dog "
        "--num_vectors_per_token=4 --learning_rate=5e-3 --max_train_steps=1500 --mixed_precision=bf16 "
        "--gradient_checkpointing --cache_latents --save_model_as=safetensors"
    ),
    "ignored": IGNORED,
}

SDXL_LLLITE_SCRIPT: ScriptText = {
    "prog": "sdxl_train_control_net_lllite.py",
    "description": "Train a ControlNet-LLLite for SDXL: modules that follow a conditioning picture.",
    "example": (
        "accelerate launch sdxl_train_control_net_lllite.py --pretrained_model_name_or_path=sdxl.safetensors "
        "--dataset_config=my_pairs.toml --output_dir=out --output_name=my_lllite --cond_emb_dim=32 --network_dim=64 "
        "--learning_rate=2e-4 --max_train_epochs=3 --mixed_precision=bf16 --gradient_checkpointing --cache_latents "
        "--cache_text_encoder_outputs"
    ),
    "ignored": IGNORED,
}

SDXL_FULL_SCRIPT: ScriptText = {
    "prog": "sdxl_train.py",
    "description": "Train the whole of SDXL: the U-Net and, where asked for, its text encoders.",
    "example": (
        "accelerate launch sdxl_train.py --pretrained_model_name_or_path=sdxl.safetensors "
        "--dataset_config=my_pictures.toml --output_dir=out --output_name=my_model --learning_rate=4e-7 "
        "--optimizer_type=Adafactor --optimizer_args scale_parameter=False relative_step=False warmup_init=False "
        "--lr_scheduler=constant_with_warmup --lr_warmup_steps=100 --max_train_epochs=10 --mixed_precision=bf16 "
        "--full_bf16 --fused_backward_pass --gradient_checkpointing --cache_latents --cache_text_encoder_outputs"
    ),
    "ignored": IGNORED,
}
