"""An SD3 model as a folder that StableDiffusion3Pipeline.from_pretrained opens without network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.tensor_stream import PlannedTensor
from library.families.model_folder import (
    DIFFUSERS_VERSION,
    Component,
    Config,
    ModelFolder,
    clip_component,
    type_name,
    vae_component,
    write_model_folder,
)
from library.families.sd3.export import CLIP_PROJECTION, Sd3Model
from library.families.sd3.key_map import ModulePair, diffusers_parts, mmdit_from_diffusers, mmdit_tensors
from library.families.whole_model import Plan, converted
from library.models.mmdit import config_from_shapes
from library.models.text_encoders import CLIP_TOKENS, T5_TOKENS_TWIN, clip_config, t5_config
from library.models.vae import SD3_SCALE, SD3_SHIFT
from library.models.vae_key_map import vae_to_diffusers

if TYPE_CHECKING:
    from torch import Tensor

    from library.models.tokenizers import TokenizerSet

Shapes = Mapping[str, tuple[int, ...]]

TRANSFORMER, VAE = "transformer", "vae"
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5xxl": "tokenizer_3"}

_LATENT_SIDE = 128  # of a picture of 1024 pixels
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_CLASSES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    TRANSFORMER: ["diffusers", "SD3Transformer2DModel"],
    VAE: ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
}


def component_plans(model: Sd3Model) -> dict[str, Plan]:
    """{folder: tensors under the names that diffusers and transformers have for them}."""
    plans = {TRANSFORMER: _diffusers_mmdit(model.mmdit()), VAE: converted(model.vae(), vae_to_diffusers)}
    for name, folder in ENCODERS.items():
        plan = model.encoder(name)
        if plan is not None:
            plans[folder] = _folder_encoder(name, plan)
    return plans


def _diffusers_mmdit(plan: Plan) -> Plan:
    """Other names; queries, keys and values apart."""
    renamed = {}
    for name, pair in mmdit_tensors(plan).items():
        tensor, number = plan[name], len(pair.diffusers)
        shape = (tensor.shape[0] // number, *tensor.shape[1:])
        for index, other in enumerate(pair.diffusers):
            renamed[other] = replace(tensor, shape=shape, fetch=partial(_part_of, tensor, pair, index))
    return renamed


def _part_of(tensor: PlannedTensor, pair: ModulePair, index: int) -> Tensor:
    return diffusers_parts(pair, tensor.fetch().detach())[index]


def _folder_encoder(name: str, plan: Plan) -> Plan:
    """Folders hold T5's table of tokens once, and for CLIP-L the projection that it does not have."""
    if name == "t5xxl":
        return {key: tensor for key, tensor in plan.items() if key != T5_TOKENS_TWIN}
    if name == "clip_l":
        import torch

        tokens = plan[CLIP_TOKENS]
        width = tokens.shape[1]
        return {**plan, CLIP_PROJECTION: PlannedTensor((width, width), tokens.dtype, lambda: torch.eye(width))}
    return plan


def write_diffusers(path: Path, model: Sd3Model, tokenizers: Callable[[], TokenizerSet]) -> None:
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


def model_folder(model: Sd3Model) -> ModelFolder:
    """What is in the folder."""
    plans = component_plans(model)
    return ModelFolder(
        components={folder: _component(folder, plan) for folder, plan in plans.items()},
        scheduler={**_SCHEDULER, **DIFFUSERS_VERSION},
        tokenizers={TOKENIZERS[name]: name for name, own in ENCODERS.items() if own in plans},
        index=model_index(plans),
    )


def model_index(folders: Iterable[str]) -> Config:
    """Which class opens which folder; null for a T5 that is not there."""
    there = {"scheduler", *folders, *(TOKENIZERS[name] for name, folder in ENCODERS.items() if folder in folders)}
    classes = {folder: found if folder in there else [None, None] for folder, found in _CLASSES.items()}
    return {"_class_name": "StableDiffusion3Pipeline", **DIFFUSERS_VERSION, **dict(sorted(classes.items()))}


def component_config(folder: str, plan: Plan) -> Config:
    """config.json of a folder, from the shapes of what is in it."""
    return _component(folder, plan).config


def _component(folder: str, plan: Plan) -> Component:
    shapes = {name: tensor.shape for name, tensor in plan.items()}
    if folder == TRANSFORMER:
        return Component(plan, _transformer_config(plan))
    if folder == VAE:
        return vae_component(plan, scale=SD3_SCALE, shift=SD3_SHIFT)
    if folder == ENCODERS["t5xxl"]:
        return Component(plan, {**_t5_config(shapes), "torch_dtype": type_name(plan)}, is_encoder=True)
    kind = next(name for name, own in ENCODERS.items() if own == folder)
    return clip_component(plan, clip_config(shapes, kind=kind), "CLIPTextModelWithProjection")


def _transformer_config(plan: Plan) -> Config:
    import torch

    outlines = {name: torch.empty(tensor.shape, device="meta") for name, tensor in plan.items()}
    sizes = config_from_shapes({name: tuple(t.shape) for name, t in mmdit_from_diffusers(outlines).items()})
    config: Config = {
        "_class_name": "SD3Transformer2DModel",
        **DIFFUSERS_VERSION,
        "sample_size": min(_LATENT_SIDE, sizes.position_side * sizes.patch_size),
        "patch_size": sizes.patch_size,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "num_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "attention_head_dim": sizes.head_dim,
        "joint_attention_dim": sizes.context_dim,
        "caption_projection_dim": sizes.hidden,
        "pooled_projection_dim": sizes.pooled_dim,
        "pos_embed_max_size": sizes.position_side,
    }
    if sizes.qk_norm:
        config["qk_norm"] = "rms_norm"
    if sizes.dual_attention:
        config["dual_attention_layers"] = list(sizes.dual_attention)
    return config


def _t5_config(shapes: Shapes) -> Config:
    config = t5_config(shapes)
    fields = (
        *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets"),
        *("relative_attention_max_distance", "feed_forward_proj", "layer_norm_epsilon", "dropout_rate"),
    )
    named = {"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": False, "use_cache": False}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False}
    return {**named, **ids, **{field: getattr(config, field) for field in fields}}
