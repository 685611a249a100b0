"""A U-Net model as a folder that StableDiffusionPipeline or StableDiffusionXLPipeline opens without network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from library.diffusion.betas import PUBLISHED, BetaSchedule
from library.families.model_folder import (
    DIFFUSERS_VERSION,
    Component,
    Config,
    ModelFolder,
    clip_component,
    vae_component,
    write_model_folder,
)
from library.families.unet.encoder_plans import folder_encoder
from library.families.unet.export import UnetModel
from library.families.unet.folder_schedule import schedule_fault, schedule_of, schedule_settings
from library.families.unet.kinds import KINDS

if TYPE_CHECKING:
    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.kinds import EncoderFacts
    from library.models.tokenizers import TokenizerSet

UNET, VAE = "unet", "vae"

_PLAIN, _WITH_PROJECTION = "CLIPTextModel", "CLIPTextModelWithProjection"
_SCHEDULERS: dict[str, Config] = {  # what is special about those of the published folders
    "PNDMScheduler": {"set_alpha_to_one": False, "skip_prk_steps": True},
    "DDIMScheduler": {"set_alpha_to_one": False, "clip_sample": False},
    "EulerDiscreteScheduler": {"interpolation_type": "linear", "use_karras_sigmas": False},
}


def write_diffusers(path: Path, model: UnetModel, tokenizers: Callable[[], TokenizerSet]) -> None:
    """Write the folder so that `path` is either what it was or the complete new one.

    Args:
        path: The folder.
        model: What to write.
        tokenizers: Finds those of the encoders. Where there are none, the folder has none, which is told.

    Raises:
        OutputError: It cannot be written.
        CheckpointError: A part of the model cannot be read.
    """
    write_model_folder(path, model_folder(model), tokenizers)


def model_folder(model: UnetModel) -> ModelFolder:
    """What is in the folder."""
    kind, names = model.files.kind, tuple(model.files.encoders)
    facts = model.files.facts
    side = facts.velocity_side if "v_pred" in model.marks else facts.picture_side
    vae = vae_component(model.vae(), scale=facts.vae_scale, shift=None, sample_size=side)
    components = {UNET: Component(model.unet(), unet_config_file(model, side // 8)), VAE: vae}
    components |= {facts.encoders[name].folder: _encoder(model, name) for name in names}
    scheduler = scheduler_config(kind, model.marks, _schedule_of(model.files))
    return ModelFolder(
        components=components,
        scheduler=scheduler,
        tokenizers={facts.encoders[name].tokenizer: name for name in names},
        index=model_index(kind, names, str(scheduler["_class_name"])),
    )


def _encoder(model: UnetModel, name: str) -> Component:
    config, facts = model.encoder_config(name), model.files.facts.encoders[name]
    plan = folder_encoder(
        model.encoder(name),
        int(config.num_hidden_layers),
        has_projection=facts.is_projected,
        has_position_ids=facts.has_position_ids,
    )
    return clip_component(plan, config, _class_of(facts))


def _class_of(facts: EncoderFacts) -> str:
    return _WITH_PROJECTION if facts.is_projected else _PLAIN


# What the files of configuration say


def unet_config_file(model: UnetModel, latent_side: int) -> Config:
    """config.json of the U-Net."""
    is_upcast = model.files.facts.upcasts_velocity and "v_pred" in model.marks  # as published
    upcast = {"upcast_attention": True} if is_upcast else {}
    named = {"_class_name": "UNet2DConditionModel", **DIFFUSERS_VERSION, "sample_size": latent_side}
    return {**named, "act_fn": "silu", **upcast, **model.files.config}


def _schedule_of(files: UnetFiles) -> BetaSchedule:
    """Of the folder that the model was read from; the published one where that is unknown."""
    return PUBLISHED if schedule_fault(files.scheduler) else schedule_of(files.scheduler)


def scheduler_config(kind: str, marks: Collection[str], schedule: BetaSchedule = PUBLISHED) -> Config:
    """The sampler of the published folder of such a model, told what the model predicts and its betas."""
    is_velocity, is_zero_terminal = "v_pred" in marks, "ztsnr" in marks
    facts = KINDS[kind]
    name = facts.scheduler_of_marked if is_velocity or is_zero_terminal else facts.scheduler
    described = {"prediction_type": "v_prediction" if is_velocity else "epsilon"}
    spacing = "trailing" if is_zero_terminal else "leading"  # which begins at the last timestep, that of pure noise
    zero: Config = {"rescale_betas_zero_snr": True} if is_zero_terminal else {}
    named: Config = {"_class_name": name, **DIFFUSERS_VERSION, **schedule_settings(schedule), "steps_offset": 1}
    return {**named, **_SCHEDULERS[name], **described, "timestep_spacing": spacing, **zero}


def model_index(kind: str, encoders: Iterable[str], scheduler: str) -> Config:
    """Which class opens which folder."""
    facts = KINDS[kind]
    classes = {
        "scheduler": ["diffusers", scheduler],
        UNET: ["diffusers", "UNet2DConditionModel"],
        VAE: ["diffusers", "AutoencoderKL"],
    }
    for name in encoders:
        classes[facts.encoders[name].folder] = ["transformers", _class_of(facts.encoders[name])]
        classes[facts.encoders[name].tokenizer] = ["transformers", "CLIPTokenizer"]
    absent: Config = {"feature_extractor": [None, None], "image_encoder": [None, None]}
    entries = {**classes, **absent, **facts.pipeline_settings}
    return {"_class_name": facts.pipeline, **DIFFUSERS_VERSION, **dict(sorted(entries.items()))}
