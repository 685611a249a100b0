"""Finding one network of a U-Net model (SD 1.x, SD 2.x, SDXL) in a weights file, from the header alone.

Prefixes are found by a tensor that the network always has, and stripped as a whole, so that every layout in use is
read: published files, their older and newer spellings, networks alone, and the parts of a diffusers folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from library.checkpoint.weights import Part, WeightFiles, select_part
from library.errors import CheckpointError
from library.families.detect import FileKind, file_kind, refuse_other_kind
from library.families.prefixes import first_of, names_under, prefix_of
from library.families.tensor_faults import check_tensors
from library.families.unet.kinds import KINDS
from library.log import get_logger
from library.models.unet_key_map import unet_from_diffusers, unet_to_diffusers

Shapes = Mapping[str, tuple[int, ...]]

DENOISER = "denoiser"
MODEL_OPTION = "--pretrained_model_name_or_path"
TITLES = {
    "vae": "VAE",
    "clip": "CLIP text encoder",
    "clip_l": "CLIP-L text encoder",
    "clip_g": "CLIP-G text encoder",
}

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
_MARK = "input_blocks.0.0.weight"
_DIFFUSERS_MARK = "time_embedding.linear_1.weight"
_MODULES = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
_DIFFUSERS_MODULES = (
    *("time_embedding.", "add_embedding.", "conv_in.", "down_blocks."),
    *("mid_block.", "up_blocks.", "conv_norm_out.", "conv_out."),
    *("class_embedding.", "encoder_hid_proj."),  # of models that are refused
)
_OTHER_INPUTS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
_PICTURE_MARKS = {"add_embedding.linear_1.weight", "class_embedding.linear_1.weight"}  # as published, and in diffusers
_OTHER_SCHEDULES = {"edm_mean": "a Playground 2.5 model", "edm_vpred.sigma_max": "an EDM model"}
_ROOTS = {
    "clip": (
        *("cond_stage_model.transformer.", "cond_stage_model.model."),
        *("conditioner.embedders.0.transformer.", "conditioner.embedders.0.model."),
    ),
    "clip_l": ("conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."),
    "clip_g": ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."),
}
_HF_TOKENS = "embeddings.token_embedding.weight"
_HF_MODULES = ("embeddings.", "encoder.", "final_layer_norm.")
_HF_ROOT_MODULES = ("text_projection.", "logit_scale")
_OPEN_CLIP_MARK = "transformer.resblocks.0.ln_1.weight"
_OPEN_CLIP_MODULES = (
    *("token_embedding.", "positional_embedding", "transformer."),
    *("ln_final.", "text_projection", "logit_scale"),
)
_EMA = "model_ema."
_SCHEDULE = re.compile(
    r"(sqrt_|log_)?(recip_|recipm1_|one_minus_)?alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|scale_factor"
    r"|denoiser\.(sigmas|log_sigmas)|model_ema\.(decay|num_updates)"
)
"""Settings of the programs that made the published files, which they keep as tensors."""

_logger = get_logger(__name__)


def find_denoiser(
    source: WeightFiles, kinds: Collection[str], input_channels: Collection[int] = (4,)
) -> tuple[str, Part, dict[str, Any]]:
    """The U-Net: its kind, where it is, and the arguments of UNet2DConditionModel.

    Args:
        source: Where to look.
        kinds: Of "sd1", "sd2" and "sdxl" those that are wanted.
        input_channels: That the U-Net may take.

    Raises:
        CheckpointError: The file is another model, or the U-Net is incomplete or has tensors too many.
    """
    kind = file_kind(source.shapes())
    refuse_other_kind(source.path, kind, [facts.file for name, facts in KINDS.items() if name in kinds])
    _refuse_other_schedule(source, kind)
    try:
        part = select_denoiser(source)
        shapes = diffusers_shapes(part)
        _refuse_other_inputs(kind.name, shapes, input_channels)
        return kind.name, part, _checked_config(kind.name, part, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{MODEL_OPTION}: {source.path}: {error}") from None


def _refuse_other_schedule(source: WeightFiles, kind: FileKind) -> None:
    for mark, title in _OTHER_SCHEDULES.items():
        if mark in source.tensors:
            raise CheckpointError(
                f"{MODEL_OPTION}: {source.path} is {title} (it has a tensor {mark}), whose noise is not that of "
                f"{kind.title}. It cannot be trained here."
            )


def _refuse_other_inputs(kind: str, shapes: Shapes, input_channels: Collection[int]) -> None:
    if not KINDS[kind].takes_sizes and _PICTURE_MARKS & shapes.keys():
        raise CheckpointError(
            "the U-Net is that of an unCLIP model, which cannot be trained here. Give the base model."
        )
    channels = shapes["conv_in.weight"][1] if "conv_in.weight" in shapes else 4
    if channels not in input_channels:
        title = _OTHER_INPUTS.get(channels, "a model of another task")
        raise CheckpointError(
            f"the U-Net takes {channels} channels instead of 4: it is {title}, which cannot be trained here. "
            "Give the base model."
        )


def select_denoiser(source: WeightFiles) -> Part:
    """The U-Net of a file that has one, not checked any further."""
    is_diffusers = not any(name.endswith(_MARK) for name in source.tensors)
    prefix = prefix_of(source, _DIFFUSERS_MARK if is_diffusers else _MARK, _PREFIXES) or ""
    # Behind a prefix is nothing else; without one the VAE or text encoders may lie beside the U-Net.
    modules = ("",) if prefix else (_DIFFUSERS_MODULES if is_diffusers else _MODULES)
    return select_part(DENOISER, source, names_under(source, prefix, modules), is_diffusers=is_diffusers)


def diffusers_shapes(part: Part) -> dict[str, tuple[int, ...]]:
    """{name as in diffusers: shape} of a U-Net in any layout."""
    return part.shapes() if part.is_diffusers else unet_to_diffusers(part.shapes())


def _checked_config(kind: str, part: Part, shapes: Shapes) -> dict[str, Any]:
    from library.models.unet_config import unet_config, wide_heads

    config = unet_config(shapes)
    # The kind knows better than the form of the projections, which other tools have written in both.
    config["attention_head_dim"] = KINDS[kind].num_heads or wide_heads(config["block_out_channels"])
    expected = _expected_shapes(json.dumps(config))
    if part.is_diffusers:
        check_tensors(shapes, expected, "the U-Net")
    else:
        check_tensors(part.shapes(), unet_from_diffusers(expected), "the U-Net")
    return config


@lru_cache(maxsize=8)
def _expected_shapes(config: str) -> Shapes:
    """{name as in diffusers: shape} of a U-Net with these arguments, which are JSON. A run asks more than once."""
    import torch

    from library.models.unet import UNet

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in UNet(**json.loads(config)).state_dict().items()}


def find_encoder(name: str, source: WeightFiles, *, is_alone: bool) -> Part | None:
    """A text encoder; None where it is not there.

    Args:
        name: "clip", "clip_l" or "clip_g".
        source: Where to look.
        is_alone: The files are those of the encoder alone, as in a diffusers folder.
    """
    for root in ("",) if is_alone else _ROOTS[name]:
        for level in ("text_model.", ""):  # some writers leave this level out
            if f"{root}{level}{_HF_TOKENS}" in source.tensors:
                names = names_under(source, root + level, _HF_MODULES)
                wanted = {key: f"text_model.{own}" for key, own in names.items() if not own.endswith("position_ids")}
                wanted |= names_under(source, root, _HF_ROOT_MODULES)
                return select_part(name, source, wanted, is_diffusers=True)
        if root + _OPEN_CLIP_MARK in source.tensors:
            return select_part(name, source, names_under(source, root, _OPEN_CLIP_MODULES))
    return None


def encoder_width(part: Part) -> int:
    """Width of a text encoder's states."""
    return _token_table(part)[1]


def encoder_tokens(part: Part) -> int:
    """Number of tokens that a text encoder knows."""
    return _token_table(part)[0]


def _token_table(part: Part) -> tuple[int, ...]:
    return part.shapes()[f"text_model.{_HF_TOKENS}" if part.is_diffusers else "token_embedding.weight"]


def report_ignored(model: WeightFiles, parts: Iterable[Part], others: Iterable[str] = ()) -> None:
    """Log how many tensors of the model's file are of no use: averages of weights, and what is unknown.

    Args:
        model: The file.
        parts: What is read of it.
        others: Names of tensors that are not told: what says something by being there, a VAE in whose place another is.
    """
    known = {*others, *(name for part in parts for name in (*part.names, *part.scales.values()))}
    ignored = sorted(name for name in model.tensors if not (name in known or is_expected(name)))
    averages = [name for name in ignored if name.startswith(_EMA)]
    unknown = [name for name in ignored if not name.startswith(_EMA)]
    told = [f"{len(averages)} of averaged weights (EMA)"] if averages else []
    told += [f"{len(unknown)} other{'s' * (len(unknown) > 1)} ({first_of(unknown)})"] if unknown else []
    if told:
        _logger.info("%s: tensors that are not used: %s", model.path, ", ".join(told))


def is_expected(name: str) -> bool:
    """Whether published files have such a tensor beside their networks."""
    return name.endswith("position_ids") or _SCHEDULE.fullmatch(name) is not None
