"""What differs between the kinds of models around a U-Net: Stable Diffusion 1.x and 2.x, and SDXL.

Sources: the published checkpoints, and their folders for diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from library.families.detect import SD1, SD2, SDXL, FileKind
from library.families.model_folder import Config
from library.models.unet_config import SD1_HEADS
from library.models.vae import SD_SCALE, SDXL_SCALE

LATENT_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """A text encoder of such models.

    Attributes:
        clip: Which CLIP it is, see `load_clip`.
        prefix: Of its tensors in a published file.
        is_open_clip: They have the names of open_clip there, else of Hugging Face.
        has_unused_layer: There they have one layer more than is used, the last one.
        is_projected: Its projection is read.
        folder: In a diffusers folder.
        tokenizer: Likewise.
        has_position_ids: The published folders have the numbers of positions in it.
        lora_prefix: Of its modules in LoRA files.
    """

    clip: str
    prefix: str
    is_open_clip: bool = False
    has_unused_layer: bool = False
    is_projected: bool = False
    folder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    has_position_ids: bool = False
    lora_prefix: str


@dataclass(frozen=True, kw_only=True)
class KindFacts:
    """A kind of models.

    Attributes:
        file: How a file of it is told, and called.
        family: Whose it is, "sd" or "sdxl".
        lora_title: How an error calls the models that take its LoRA files.
        encoders: By name, in order.
        num_heads: Of attention in every level; None where each has 64 channels.
        takes_sizes: The U-Net is told the pooled text, and what of the picture it sees.
        vae_scale: By which latents are scaled, which are not shifted.
        has_published_layers: LoRA files name layers of the U-Net as published files do, else as diffusers.
        writes_marks: Single files say by empty tensors what the model predicts.
        text_archive: Ending of the caches of sd-scripts that hold text; None where there are none.
        picture_side: Of the pictures that the published models were trained with, in pixels.
        velocity_side: The same of those that predict the velocity.
        upcasts_velocity: Folders of those say that attention is computed in float32.
        scheduler: Of the published folder.
        scheduler_of_marked: Where the model predicts the velocity, or knows noise without any signal.
        pipeline: The class of diffusers that opens the folder.
        pipeline_settings: What its index says beside the parts that there are.
    """

    file: FileKind
    family: str
    lora_title: str
    encoders: Mapping[str, EncoderFacts]
    num_heads: int | None = None
    takes_sizes: bool = False
    vae_scale: float = SD_SCALE
    has_published_layers: bool = False
    writes_marks: bool = False
    text_archive: str | None = None
    picture_side: int
    velocity_side: int
    upcasts_velocity: bool = False
    scheduler: str = "PNDMScheduler"
    scheduler_of_marked: str = "DDIMScheduler"
    pipeline: str = "StableDiffusionPipeline"
    pipeline_settings: Config = field(
        default_factory=lambda: {"safety_checker": [None, None], "requires_safety_checker": False}
    )


KINDS: Mapping[str, KindFacts] = {
    "sd1": KindFacts(
        file=SD1,
        family="sd",
        lora_title="SD1 or SD2",
        encoders={
            "clip": EncoderFacts(
                clip="clip_l",
                prefix="cond_stage_model.transformer.",
                has_position_ids=True,
                lora_prefix="lora_te_",
            )
        },
        num_heads=SD1_HEADS,
        picture_side=512,
        velocity_side=512,
    ),
    "sd2": KindFacts(
        file=SD2,
        family="sd",
        lora_title="SD1 or SD2",
        encoders={
            "clip": EncoderFacts(
                clip="clip_h",
                prefix="cond_stage_model.model.",
                is_open_clip=True,
                has_unused_layer=True,
                has_position_ids=True,
                lora_prefix="lora_te_",
            )
        },
        picture_side=512,
        velocity_side=768,
        upcasts_velocity=True,
    ),
    "sdxl": KindFacts(
        file=SDXL,
        family="sdxl",
        lora_title="SDXL",
        encoders={
            "clip_l": EncoderFacts(
                clip="clip_l",
                prefix="conditioner.embedders.0.transformer.",
                lora_prefix="lora_te1_",
            ),
            "clip_g": EncoderFacts(
                clip="clip_g",
                prefix="conditioner.embedders.1.model.",
                is_open_clip=True,
                is_projected=True,
                folder="text_encoder_2",
                tokenizer="tokenizer_2",
                lora_prefix="lora_te2_",
            ),
        },
        takes_sizes=True,
        vae_scale=SDXL_SCALE,
        has_published_layers=True,
        writes_marks=True,
        text_archive="_te_outputs.npz",
        picture_side=1024,
        velocity_side=1024,
        scheduler="EulerDiscreteScheduler",
        scheduler_of_marked="EulerDiscreteScheduler",
        pipeline="StableDiffusionXLPipeline",
        pipeline_settings={"force_zeros_for_empty_prompt": True},
    ),
}


def facts_of(name: str) -> KindFacts:
    """Of a kind; or of a family, whose kinds are alike in what is asked of it."""
    return KINDS[name] if name in KINDS else next(facts for facts in KINDS.values() if facts.family == name)
