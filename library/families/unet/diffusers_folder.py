"""A U-Net model as a folder that StableDiffusionPipeline or StableDiffusionXLPipeline opens without network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

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
from library.models.vae import SD_SCALE, SDXL_SCALE

if TYPE_CHECKING:
    from library.models.tokenizers import TokenizerSet

UNET, VAE = "unet", "vae"
ENCODERS = {"clip": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
TOKENIZERS = {"clip": "tokenizer", "clip_l": "tokenizer", "clip_g": "tokenizer_2"}

_PROJECTED = "clip_g"
_PLAIN, _WITH_PROJECTION = "CLIPTextModel", "CLIPTextModelWithProjection"
_BETAS: Config = {
    **{"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"trained_betas": None, "steps_offset": 1},
}
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
    side = _picture_side(kind, model.marks)
    vae = vae_component(model.vae(), scale=SDXL_SCALE if kind == "sdxl" else SD_SCALE, shift=None, sample_size=side)
    components = {UNET: Component(model.unet(), unet_settings(model, side // 8)), VAE: vae}
    components |= {ENCODERS[name]: _encoder(model, name) for name in names}
    scheduler = scheduler_config(kind, model.marks)
    return ModelFolder(
        components=components,
        scheduler=scheduler,
        tokenizers={TOKENIZERS[name]: name for name in names},
        index=model_index(kind, names, str(scheduler["_class_name"])),
    )


def _encoder(model: UnetModel, name: str) -> Component:
    config = model.encoder_config(name)
    plan = folder_encoder(
        model.encoder(name),
        int(config.num_hidden_layers),
        has_projection=name == _PROJECTED,
        has_position_ids=name == "clip",  # the published folders of SDXL leave them out
    )
    return clip_component(plan, config, _class_of(name))


def _class_of(name: str) -> str:
    return _WITH_PROJECTION if name == _PROJECTED else _PLAIN


def _picture_side(kind: str, marks: Collection[str]) -> int:
    """Of the pictures that the published models were trained with, in pixels; those of SD 2.x with v have 768."""
    return {"sd1": 512, "sd2": 768 if "v_pred" in marks else 512, "sdxl": 1024}[kind]


# What the files of configuration say


def unet_settings(model: UnetModel, latent_side: int) -> Config:
    """config.json of the U-Net."""
    upcast = {"upcast_attention": True} if model.files.kind == "sd2" and "v_pred" in model.marks else {}  # as published
    named = {"_class_name": "UNet2DConditionModel", **DIFFUSERS_VERSION, "sample_size": latent_side}
    return {**named, "act_fn": "silu", **upcast, **model.files.config}


def scheduler_config(kind: str, marks: Collection[str]) -> Config:
    """The sampler of the published folder of such a model, told what the model predicts."""
    is_velocity, is_zero_terminal = "v_pred" in marks, "ztsnr" in marks
    if kind == "sdxl":
        name = "EulerDiscreteScheduler"
    else:
        name = "DDIMScheduler" if is_velocity or is_zero_terminal else "PNDMScheduler"
    described = {"prediction_type": "v_prediction" if is_velocity else "epsilon"}
    spacing = "trailing" if is_zero_terminal else "leading"  # which begins at the last timestep, that of pure noise
    zero: Config = {"rescale_betas_zero_snr": True} if is_zero_terminal else {}
    named: Config = {"_class_name": name, **DIFFUSERS_VERSION, **_BETAS}
    return {**named, **_SCHEDULERS[name], **described, "timestep_spacing": spacing, **zero}


def model_index(kind: str, encoders: Iterable[str], scheduler: str) -> Config:
    """Which class opens which folder."""
    classes = {
        "scheduler": ["diffusers", scheduler],
        UNET: ["diffusers", "UNet2DConditionModel"],
        VAE: ["diffusers", "AutoencoderKL"],
    }
    for name in encoders:
        classes[ENCODERS[name]] = ["transformers", _class_of(name)]
        classes[TOKENIZERS[name]] = ["transformers", "CLIPTokenizer"]
    absent: Config = {"feature_extractor": [None, None], "image_encoder": [None, None]}
    if kind == "sdxl":
        more = {**absent, "force_zeros_for_empty_prompt": True}
        pipeline = "StableDiffusionXLPipeline"
    else:
        more = {**absent, "safety_checker": [None, None], "requires_safety_checker": False}
        pipeline = "StableDiffusionPipeline"
    return {"_class_name": pipeline, **DIFFUSERS_VERSION, **dict(sorted({**classes, **more}.items()))}
