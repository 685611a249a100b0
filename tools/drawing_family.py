"""The model family that draws: what the options say, or what the model file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.families.detect import denoiser_place, file_kind
from library.families.hub_model import is_hub_name
from library.generation.options.scripts import GenerationOptions
from library.log import get_logger

if TYPE_CHECKING:
    from library.families.base import ModelFamily

logger = get_logger(__name__)

_KINDS = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd3": "sd3", "sd3_diffusers": "sd3"}
_TITLES = {"sd": "Stable Diffusion 1.x and 2.x", "sdxl": "SDXL", "sd3": "SD3"}


def drawing_family(options: GenerationOptions) -> ModelFamily:
    """The family of the model that draws.

    Raises:
        CheckpointError: The model cannot be read, or is of no family.
        OptionError: It is of another family than the options say, or has to be downloaded first.
    """
    ckpt, chosen = Path(str(options.model.ckpt)), options.model.chosen
    if is_hub_name(ckpt):
        if chosen is None:
            raise OptionError(
                f"--ckpt: {ckpt} is not on this machine, so its files do not tell its family. Say it with --v1, --v2 "
                "or --sdxl, or check the path."
            )
        return _family(chosen, options)
    kind = _kind_of_file(ckpt, options.model.allow_pickle)
    found = _KINDS[kind]
    if chosen not in (None, found) or (options.model.v1 and kind == "sd2"):
        title = "Stable Diffusion 2.x" if options.model.v1 and kind == "sd2" else _TITLES[found]
        if _flag(options) in options.preset:
            own = _TITLES[str(chosen)]
            raise OptionError(f"--ckpt: {ckpt} is a model of {title}, and this script is for {own}. Use gen_img.py.")
        raise OptionError(f"--{_flag(options)}: {ckpt} is a model of {title}. Leave the option out: the file says it.")
    return _family(found, options)


def _kind_of_file(path: Path, allow_pickle: bool) -> str:
    from library.checkpoint.weights import open_weights

    kind = file_kind(open_weights(denoiser_place(path), "--ckpt", allow_pickle=allow_pickle).shapes())
    if kind.name not in _KINDS:
        raise CheckpointError(f"--ckpt: {path} is {kind.title}. Give a whole model of {', '.join(_TITLES.values())}.")
    return kind.name


def _flag(options: GenerationOptions) -> str:
    """The option that says the family."""
    return next(name for name in ("v1", "v2", "sdxl", "sd3") if getattr(options.model, name))


def _family(name: str, options: GenerationOptions) -> ModelFamily:
    _tell_ignored(name, options)
    model = options.model
    shared: dict[str, Any] = {
        "pretrained": Path(str(model.ckpt)),
        "vae": model.vae,
        "tokenizer_dir": model.tokenizer_dir,
        "tokenizer_cache_dir": model.tokenizer_cache_dir,
        "allow_pickle": model.allow_pickle,
    }
    if name == "sd3":
        return _sd3(shared, options)
    noise = {"v_parameterization": model.v_parameterization, "zero_terminal_snr": model.zero_terminal_snr}
    shared |= {"is_weighted": True, "noise": noise, "follows_marks": True, "input_channels": (4, 9)}
    if name == "sdxl":
        from library.families.sdxl.family import SdxlFamily

        return SdxlFamily(**shared)
    from library.families.sd.family import SdFamily

    return SdFamily(**shared, is_v2=model.v2, clip_skip=model.clip_skip)


def _sd3(shared: dict[str, Any], options: GenerationOptions) -> ModelFamily:
    from library.families.sd3.family import Sd3Family
    from library.families.sd3.settings import ENCODER_NAMES

    sd3 = options.sd3
    return Sd3Family(
        **shared,
        clip_l=sd3.clip_l,
        clip_g=sd3.clip_g,
        t5xxl=sd3.t5xxl,
        t5_length=sd3.t5xxl_max_token_length,
        t5_device=sd3.t5xxl_device,
        t5_dtype=sd3.t5xxl_dtype,
        apply_lg_attn_mask=sd3.apply_lg_attn_mask,
        apply_t5_attn_mask=sd3.apply_t5_attn_mask,
        dropout_rates=dict.fromkeys(ENCODER_NAMES, 0.0),
        flow={},
    )


_OF_UNETS = ("v_parameterization", "zero_terminal_snr", "clip_skip", "max_embeddings_multiples", "emb_normalize_mode")
_UNET_EXTRAS = ("ds_", "gradual_latent_", "force_scheduler_")  # how the names of options begin
_OF_SIZES = (
    *("original_width", "original_height", "original_width_negative", "original_height_negative"),
    *("crop_top", "crop_left"),
)


def _tell_ignored(name: str, options: GenerationOptions) -> None:
    """One line about options that have no effect for the family."""
    from dataclasses import fields

    from library.options.spec import line_without_effect

    reasons: dict[str, str] = {}
    if name == "sd3":
        reasons |= dict.fromkeys(_OF_UNETS, "for models with a U-Net")
        reasons |= {key: "for models with a U-Net" for key in options.values() if key.startswith(_UNET_EXTRAS)}
        if "sampler" in options.given and not options.picture.sampler.endswith("euler"):
            logger.warning("--sampler %s has no effect: SD3 is drawn by Euler's method.", options.picture.sampler)
    else:
        reasons |= {item.name: "for SD3" for item in fields(options.sd3)}
    if name != "sdxl":
        reasons |= dict.fromkeys((*_OF_SIZES, "clip_vision_strength", "clip_vision_model"), "for SDXL")
    else:
        reasons["clip_skip"] = "SDXL always takes the last but one layer of both text encoders"
    for line in line_without_effect(options, reasons):
        logger.warning("%s", line)
