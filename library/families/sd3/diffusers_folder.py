"""An SD3 model as a folder that StableDiffusion3Pipeline.from_pretrained opens without network.

Configurations are computed from shapes and need no diffusers. Weights above 10 GB (text encoders: 5 GB) are cut into
shards, as published folders have them. `model_index.json` is written last: with it the folder is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.state_folder import MODEL_INDEX, write_whole_folder
from library.checkpoint.tensor_stream import PlannedTensor, total_bytes, write_planned
from library.errors import CheckpointError, EnvironmentFault
from library.families.sd3.export import CLIP_PROJECTION, Plan, Sd3Model
from library.families.sd3.key_map import ModulePair, diffusers_parts, mmdit_from_diffusers, mmdit_tensors
from library.families.sd3.tokenizer_files import write_tokenizer
from library.log import get_logger
from library.models.mmdit import config_from_shapes
from library.models.text_encoders import CLIP_TOKENS, T5_TOKENS_TWIN, clip_config, t5_config
from library.models.vae import SD3_SCALE, SD3_SHIFT, vae_config
from library.models.vae_key_map import vae_names, vae_to_diffusers
from library.tensorfile import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from library.models.tokenizers import TokenizerSet

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

TRANSFORMER, VAE = "transformer", "vae"
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5xxl": "tokenizer_3"}
MAX_SHARD_BYTES = 10_000_000_000
MAX_ENCODER_SHARD_BYTES = 5_000_000_000

_METADATA = {"format": "pt"}  # without it older transformers refuse a file
_VERSION = {"_diffusers_version": "0.32.0"}  # the oldest that reads every variant
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

logger = get_logger(__name__)


def component_plans(model: Sd3Model) -> dict[str, Plan]:
    """{folder: tensors under the names that diffusers and transformers have for them}."""
    plans = {TRANSFORMER: _diffusers_mmdit(model.mmdit()), VAE: _diffusers_vae(model.vae())}
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


def _diffusers_vae(plan: Plan) -> Plan:
    """Other names; and projections of the attention are matrices, not 1 x 1 convolutions."""
    import torch

    names = vae_names(plan)
    outlines = vae_to_diffusers({name: torch.empty(tensor.shape, device="meta") for name, tensor in plan.items()})
    return {names[name]: _reshaped(tensor, tuple(outlines[names[name]].shape)) for name, tensor in plan.items()}


def _reshaped(tensor: PlannedTensor, shape: tuple[int, ...]) -> PlannedTensor:
    return replace(tensor, shape=shape, fetch=lambda: tensor.fetch().reshape(shape))


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
    plans = component_plans(model)

    def write(place: Path) -> None:
        for folder, plan in plans.items():
            (place / folder).mkdir()
            if folder in ENCODERS.values():
                write_shards(place / folder, "model", plan, MAX_ENCODER_SHARD_BYTES)
            else:
                write_shards(place / folder, "diffusion_pytorch_model", plan, MAX_SHARD_BYTES)
            _write_json(place / folder / "config.json", component_config(folder, plan))
        (place / "scheduler").mkdir()
        _write_json(place / "scheduler" / "scheduler_config.json", {**_SCHEDULER, **_VERSION})
        _write_tokenizers(place, plans, tokenizers)
        _write_json(place / MODEL_INDEX, model_index(plans))

    write_whole_folder(path, write, sum(total_bytes(plan) for plan in plans.values()))


def write_shards(folder: Path, stem: str, plan: Plan, limit: int) -> None:
    """One file, or as many as it takes that none has more than `limit` bytes, and an index of them."""
    shards = cut_into_shards(plan, limit)
    if len(shards) == 1:
        write_planned(folder / f"{stem}.safetensors", plan, _METADATA)
        return
    files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_planned(folder / file, shard, _METADATA)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total_bytes(plan)}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def cut_into_shards(plan: Plan, limit: int) -> list[Plan]:
    """The tensors in their order, cut where `limit` bytes would be exceeded."""
    shards: list[Plan] = [{}]
    size = 0
    for name, tensor in plan.items():
        if size and size + tensor.num_bytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.num_bytes
    return shards


def _write_tokenizers(place: Path, plans: Mapping[str, Plan], tokenizers: Callable[[], TokenizerSet]) -> None:
    try:
        found = tokenizers()
    except (CheckpointError, EnvironmentFault) as error:
        logger.warning("%s is written without tokenizers, put them in yourself: %s", place.parent, error)
        return
    for name, folder in TOKENIZERS.items():
        if ENCODERS[name] in plans and name in found:
            write_tokenizer(place / folder, found[name])


# What the files of configuration say


def model_index(folders: Iterable[str]) -> Config:
    """Which class opens which folder; null for a T5 that is not there."""
    there = {"scheduler", *folders, *(TOKENIZERS[name] for name, folder in ENCODERS.items() if folder in folders)}
    classes = {folder: found if folder in there else [None, None] for folder, found in _CLASSES.items()}
    return {"_class_name": "StableDiffusion3Pipeline", **_VERSION, **dict(sorted(classes.items()))}


def component_config(folder: str, plan: Plan) -> Config:
    """config.json of a folder, from the shapes of what is in it."""
    shapes = {name: tensor.shape for name, tensor in plan.items()}
    if folder == TRANSFORMER:
        return _transformer_config(plan)
    if folder == VAE:
        sizes = vae_config(shapes, scale=SD3_SCALE, shift=SD3_SHIFT)
        return {"_class_name": "AutoencoderKL", **_VERSION, "act_fn": "silu", "force_upcast": True, **sizes}
    dtype = next(iter(plan.values())).dtype
    config = _t5_config(shapes) if folder == ENCODERS["t5xxl"] else _clip_config(folder, shapes)
    return {**config, "torch_dtype": str(dtype).removeprefix("torch.")}


def _transformer_config(plan: Plan) -> Config:
    import torch

    outlines = {name: torch.empty(tensor.shape, device="meta") for name, tensor in plan.items()}
    sizes = config_from_shapes({name: tuple(t.shape) for name, t in mmdit_from_diffusers(outlines).items()})
    config: Config = {
        "_class_name": "SD3Transformer2DModel",
        **_VERSION,
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


def _clip_config(folder: str, shapes: Shapes) -> Config:
    kind = next(name for name, own in ENCODERS.items() if own == folder)
    config = clip_config(shapes, kind=kind)
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
        *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout"),
        *("bos_token_id", "pad_token_id", "eos_token_id"),
    )
    named = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    return {**named, **{field: getattr(config, field) for field in fields}}


def _t5_config(shapes: Shapes) -> Config:
    config = t5_config(shapes)
    fields = (
        *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets"),
        *("relative_attention_max_distance", "feed_forward_proj", "layer_norm_epsilon", "dropout_rate"),
    )
    named = {"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": False, "use_cache": False}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False}
    return {**named, **ids, **{field: getattr(config, field) for field in fields}}


def _write_json(path: Path, content: Config) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda place: _write_text(place, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
