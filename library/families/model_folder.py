"""A whole model as a folder that a pipeline of diffusers opens by from_pretrained, without network.

Configurations are computed from shapes and need no diffusers. Large weights are cut into shards, as published folders
have them. `model_index.json` is written last: with it the folder is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.state_folder import MODEL_INDEX, write_whole_folder
from library.checkpoint.tensor_stream import total_bytes, write_planned
from library.errors import CheckpointError, EnvironmentFault
from library.families.tokenizer_files import write_tokenizer
from library.families.whole_model import FOR_SIDE_FILES, Plan
from library.log import get_logger
from library.models.vae import vae_config
from library.tensorfile import write_atomically

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

    from library.models.tokenizers import TokenizerSet

Config = dict[str, Any]

MAX_SHARD_BYTES = 10_000_000_000
MAX_ENCODER_SHARD_BYTES = 5_000_000_000
DIFFUSERS_VERSION = {"_diffusers_version": "0.32.0"}  # the oldest that reads every variant

logger = get_logger(__name__)


@dataclass(frozen=True)
class Component:
    """A network of a model folder.

    Attributes:
        plan: Its tensors, under the names that diffusers or transformers have for them.
        config: Of its config.json.
        is_encoder: It is one of transformers, whose files have other names.
    """

    plan: Plan
    config: Config
    is_encoder: bool = False


@dataclass(frozen=True)
class ModelFolder:
    """What is in a folder.

    Attributes:
        components: {folder: network}.
        scheduler: Its configuration.
        tokenizers: {folder: encoder whose tokenizer it gets}.
        index: Of `model_index.json`.
        variant: Word before the ending of weights files, as in NAME.fp16.safetensors; None for none.
    """

    components: Mapping[str, Component]
    scheduler: Config
    tokenizers: Mapping[str, str]
    index: Config
    variant: str | None = None

    def total_bytes(self) -> int:
        """Of all weights."""
        return sum(total_bytes(component.plan) for component in self.components.values())


def write_model_folder(path: Path, model: ModelFolder, find_tokenizers: Callable[[], TokenizerSet]) -> None:
    """Write the folder so that `path` is either what it was or the complete new one.

    Args:
        path: The folder.
        model: What goes into it.
        find_tokenizers: Finds those of the encoders. Where there are none, the folder has none, which is told.

    Raises:
        OutputError: It cannot be written.
        CheckpointError: A part of the model cannot be read.
    """

    def write(place: Path) -> None:
        for folder, component in model.components.items():
            (place / folder).mkdir()
            stem = "model" if component.is_encoder else "diffusion_pytorch_model"
            limit = MAX_ENCODER_SHARD_BYTES if component.is_encoder else MAX_SHARD_BYTES
            write_shards(place / folder, stem, component.plan, limit, model.variant)
            _write_json(place / folder / "config.json", component.config)
        (place / "scheduler").mkdir()
        _write_json(place / "scheduler" / "scheduler_config.json", model.scheduler)
        _write_tokenizers(place, path.name, model.tokenizers, find_tokenizers)
        _write_json(place / MODEL_INDEX, model.index)

    write_whole_folder(path, write, model.total_bytes())


def write_shards(folder: Path, stem: str, plan: Plan, limit: int, variant: str | None = None) -> None:
    """One file, or as many as it takes that none has more than `limit` bytes, and an index of them."""
    shards, form = cut_into_shards(plan, limit), f".{variant}" if variant else ""
    if len(shards) == 1:
        write_planned(folder / f"{stem}{form}.safetensors", plan, FOR_SIDE_FILES)
        return
    numbers = range(1, len(shards) + 1)
    files = [f"{stem}{form}-{number:05d}-of-{len(shards):05d}.safetensors" for number in numbers]
    for file, shard in zip(files, shards, strict=True):
        write_planned(folder / file, shard, FOR_SIDE_FILES)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total_bytes(plan)}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index{form}.json", index)


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


def _write_tokenizers(
    place: Path, name: str, tokenizers: Mapping[str, str], find_tokenizers: Callable[[], TokenizerSet]
) -> None:
    try:
        found = find_tokenizers()
    except (CheckpointError, EnvironmentFault) as error:
        target = place.parent / name
        logger.warning("%s is written without tokenizers, which programs need to open it. %s", target, error)
        return
    for folder, encoder in tokenizers.items():
        if encoder in found:
            write_tokenizer(place / folder, found[encoder])


def vae_component(plan: Plan, *, scale: float, shift: float | None, **more: Any) -> Component:
    """An autoencoder.

    Args:
        plan: Its tensors under diffusers' names.
        scale: Of latents.
        shift: Of latents; None where the model knows none.
        more: What else its configuration says.
    """
    sizes = vae_config({name: tensor.shape for name, tensor in plan.items()}, scale=scale, shift=shift or 0.0)
    named = {"_class_name": "AutoencoderKL", **DIFFUSERS_VERSION, "act_fn": "silu", "force_upcast": True}
    return Component(plan, {**named, **sizes, "shift_factor": shift, **more})


def clip_component(plan: Plan, config: CLIPTextConfig, kind: str) -> Component:
    """A CLIP text encoder.

    Args:
        plan: Its tensors under Hugging Face's names.
        config: Its sizes.
        kind: Its class in transformers.
    """
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
        *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout"),
        *("bos_token_id", "pad_token_id", "eos_token_id"),
    )
    named = {"architectures": [kind], "model_type": "clip_text_model"}
    settings = {**named, **{field: getattr(config, field) for field in fields}, "torch_dtype": type_name(plan)}
    return Component(plan, settings, is_encoder=True)


def type_name(plan: Plan) -> str:
    """What the weights of a plan are stored in, as transformers calls it."""
    dtype = next(tensor.dtype for tensor in plan.values() if tensor.dtype.is_floating_point)
    return str(dtype).removeprefix("torch.")


def _write_json(path: Path, content: Config) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda place: _write_text(place, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
