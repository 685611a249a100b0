"""Tiny SD 1.x, SD 2.x and SDXL models with random weights: published single files, and diffusers folders.

Names, the relations of shapes and the tokenizers are those of real models; only the sizes are small. Weights are drawn
so that signals keep a size near 1 and every path is alive. The same seed gives the same file, in both layouts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.tiny_sd3.tokenizers import clip_vocabulary, write_tokenizers
from library.models.clip_key_map import clip_to_open_clip
from library.models.unet_key_map import unet_from_diffusers
from library.models.vae_key_map import vae_from_diffusers
from library.rng import torch_stream
from library.tensorfile import write_tensors

CLIP_L_WIDTH = 32
CLIP_G_WIDTH = 48  # must differ from CLIP-L's: diffusers tells the two apart by it
CLIP_LENGTH = 77
LATENT_CHANNELS = 4
VAE_WIDTHS = [16, 16, 32, 32]
VAE_GROUPS = 8
_SIZE_WIDTH = 32  # of the embedding of each of SDXL's six sizes
_QUIET = ("conv2.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight")  # ends of residual branches
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class TinyModel(NamedTuple):
    """A file or a folder, and the folder with `tokenizer` and `tokenizer_2`."""

    path: Path
    tokenizer_dir: Path


def write_sd1(folder: str | Path, *, seed: int = 0, dtype: str = "fp32") -> TinyModel:
    """A single file, with what real ones have beside the weights."""
    parts = _weights("sd1", seed, dtype)
    tensors = {
        **_published(parts),
        **_under("cond_stage_model.transformer.", parts["text_encoder"] | _position_ids()),
        **_schedule(),
    }
    return _written(Path(folder), "sd1", tensors)


def write_sd2(folder: str | Path, *, is_v: bool = False, seed: int = 0, dtype: str = "fp32") -> TinyModel:
    """A single file; what it predicts is not told by it. The text encoder has a layer more than is used."""
    del is_v
    parts = _weights("sd2", seed, dtype)
    text = clip_to_open_clip(parts["text_encoder"] | _unused_of_sd2(seed, dtype))
    return _written(
        Path(folder), "sd2", {**_published(parts), **_under("cond_stage_model.model.", text), **_schedule()}
    )


def write_sdxl(folder: str | Path, *, marks: tuple[str, ...] = (), seed: int = 0, dtype: str = "fp32") -> TinyModel:
    """A single file. `marks`: names of empty tensors, "v_pred" and "ztsnr"."""
    parts = _weights("sdxl", seed, dtype)
    scale = {"logit_scale": torch.tensor(4.6052, dtype=_DTYPES[dtype])}
    tensors = {
        **_published(parts),
        **_under("conditioner.embedders.0.transformer.", parts["text_encoder"] | _position_ids()),
        **_under("conditioner.embedders.1.model.", clip_to_open_clip(parts["text_encoder_2"] | scale)),
        **{mark: torch.empty(0) for mark in marks},
    }
    return _written(Path(folder), "sdxl", tensors)


def write_sd1_folder(folder: str | Path, *, seed: int = 0, dtype: str = "fp32") -> TinyModel:
    """The same model as a diffusers folder."""
    return _write_folder(Path(folder), "sd1", seed, dtype)


def write_sd2_folder(folder: str | Path, *, is_v: bool = False, seed: int = 0, dtype: str = "fp32") -> TinyModel:
    """The same model as a diffusers folder, whose scheduler says what it predicts."""
    return _write_folder(Path(folder), "sd2", seed, dtype, is_v=is_v)


def write_sdxl_folder(folder: str | Path, *, is_v: bool = False, seed: int = 0, dtype: str = "fp32") -> TinyModel:
    """The same model as a diffusers folder."""
    return _write_folder(Path(folder), "sdxl", seed, dtype, is_v=is_v)


def write_inpainting_folder(source: Path, folder: Path, *, strength: float) -> None:
    """A folder of SD1 as a model that fills in parts of pictures: its U-Net takes 9 channels, of which 5 are new.

    Args:
        source: A folder of SD1.
        folder: Made here.
        strength: Standard deviation of the weights of the new channels.
    """
    shutil.copytree(source, folder)
    weights, config = folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet" / "config.json"
    tensors = load_file(weights)
    first = tensors["conv_in.weight"]
    more = torch.randn(first.shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(2)) * strength
    save_file({**tensors, "conv_in.weight": torch.cat([first, more], dim=1)}, weights)
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))


# ---------------------------------------------------------------- sizes


def unet_settings(kind: str) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel; kind "sd1", "sd2" or "sdxl"."""
    down, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    types = [down, cross, cross] if kind == "sdxl" else [cross, cross, cross, down]
    common: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": [32, 64, 64] if kind == "sdxl" else [32, 64, 64, 64],
        "down_block_types": types,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(types)],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "cross_attention_dim": CLIP_L_WIDTH + CLIP_G_WIDTH if kind == "sdxl" else CLIP_L_WIDTH,
    }
    if kind == "sd1":
        return common | {"attention_head_dim": 8}
    heads = {"attention_head_dim": [2, 1, 1] if kind == "sdxl" else [2, 1, 1, 1], "use_linear_projection": True}
    if kind == "sd2":
        return common | heads
    return {
        **common,
        **heads,
        "transformer_layers_per_block": [1, 1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_WIDTH,
        "projection_class_embeddings_input_dim": CLIP_G_WIDTH + 6 * _SIZE_WIDTH,
    }


def vae_settings(kind: str) -> dict[str, Any]:
    """Arguments of AutoencoderKL: four levels, 8 pixels per latent."""
    return {
        "block_out_channels": VAE_WIDTHS,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": VAE_GROUPS,
        "scaling_factor": 0.13025 if kind == "sdxl" else 0.18215,
    }


def clip_settings(width: int, activation: str) -> dict[str, Any]:
    """Arguments of CLIPTextConfig: two layers."""
    size = len(clip_vocabulary()[0])
    return {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 16,
        "max_position_embeddings": CLIP_LENGTH,
        "hidden_act": activation,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }


def _clips(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """{folder: (class, settings)}"""
    first = clip_settings(CLIP_L_WIDTH, "gelu" if kind == "sd2" else "quick_gelu")
    if kind != "sdxl":
        return {"text_encoder": ("CLIPTextModel", first)}
    second = clip_settings(CLIP_G_WIDTH, "gelu")
    return {
        "text_encoder": ("CLIPTextModel", first),
        "text_encoder_2": ("CLIPTextModelWithProjection", second),
    }


# ---------------------------------------------------------------- weights


def _weights(kind: str, seed: int, dtype: str) -> dict[str, dict[str, Tensor]]:
    """{folder: {name of diffusers or transformers: tensor}}"""
    parts = {name: _drawn(shapes, seed, f"{kind} {name}") for name, shapes in _shapes(kind).items()}
    weight, bias = parts["vae"]["encoder.conv_out.weight"], parts["vae"]["encoder.conv_out.bias"]
    weight[LATENT_CHANNELS:] *= 0.1  # the second half is the logarithm of the variance: about -6
    bias[LATENT_CHANNELS:] -= 6
    return {part: {name: t.to(_DTYPES[dtype]) for name, t in tensors.items()} for part, tensors in parts.items()}


@lru_cache
def _shapes(kind: str) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(**unet_settings(kind)),
            "vae": AutoencoderKL(**vae_settings(kind)),
        }
        for name, (_, settings) in _clips(kind).items():
            modules[name] = CLIPTextModelWithProjection(CLIPTextConfig(**settings))
    shapes = {name: {key: tuple(t.shape) for key, t in m.state_dict().items()} for name, m in modules.items()}
    del shapes["text_encoder"]["text_projection.weight"]  # of the second encoder of SDXL only
    return shapes


def _drawn(shapes: Mapping[str, tuple[int, ...]], seed: int, part: str) -> dict[str, Tensor]:
    """Each tensor from its own stream: neither order nor what else is in the model changes it."""
    return {
        name: torch.randn(shape, generator=torch_stream(seed, "tiny_unets", part, name)) * std + mean
        for name, shape in shapes.items()
        for std, mean in [_spread(name, shape)]
    }


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Deviation and mean."""
    if name.endswith("bias"):
        return 0.02, 0.0
    if len(shape) == 1:
        return 0.05, 1.0  # of a norm
    if "_embedding.weight" in name and "text_model" in name:
        return 0.5, 0.0
    return (0.5 if name.endswith(_QUIET) else 1.2) * torch.Size(shape[1:]).numel() ** -0.5, 0.0


def _unused_of_sd2(seed: int, dtype: str) -> dict[str, Tensor]:
    """What single files of SD 2.x have and nobody uses: a last layer, a projection and a scale."""
    first = "text_model.encoder.layers.0."
    shapes = _shapes("sd2")["text_encoder"]
    extra = {name.replace(".0.", ".2.", 1): shape for name, shape in shapes.items() if name.startswith(first)}
    extra["text_projection.weight"] = (CLIP_L_WIDTH, CLIP_L_WIDTH)
    drawn = _drawn(extra, seed, "sd2 unused") | {"logit_scale": torch.tensor(4.6052)}
    return {name: tensor.to(_DTYPES[dtype]) for name, tensor in drawn.items()}


# ---------------------------------------------------------------- files


def _published(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        **_under("model.diffusion_model.", unet_from_diffusers(parts["unet"])),
        **_under("first_stage_model.", vae_from_diffusers(parts["vae"])),
    }


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _position_ids() -> dict[str, Tensor]:
    return {"text_model.embeddings.position_ids": torch.arange(CLIP_LENGTH)[None]}


def _schedule() -> dict[str, Tensor]:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    averages = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1, dtype=torch.int32)}
    return {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0), **averages}


def _written(folder: Path, kind: str, tensors: Mapping[str, Tensor]) -> TinyModel:
    path = folder / f"{kind}.safetensors"
    write_tensors(path, tensors, {"format": "pt"})
    _write_tokenizers(folder, kind)
    return TinyModel(path, folder)


def _write_tokenizers(folder: Path, kind: str) -> None:
    """The first pads with its end token, the second of SDXL and the only one of SD 2.x with "!"."""
    write_tokenizers(folder)
    shutil.rmtree(folder / "tokenizer_3")
    if kind == "sd2":
        shutil.rmtree(folder / "tokenizer")
        (folder / "tokenizer_2").rename(folder / "tokenizer")
    elif kind == "sd1":
        shutil.rmtree(folder / "tokenizer_2")


def _write_folder(folder: Path, kind: str, seed: int, dtype: str, *, is_v: bool = False) -> TinyModel:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        UNet2DConditionModel(**unet_settings(kind)).save_config(folder / "unet")
        AutoencoderKL(**vae_settings(kind)).save_config(folder / "vae")
    for name, (class_name, settings) in _clips(kind).items():
        CLIPTextConfig(**settings, architectures=[class_name]).save_pretrained(folder / name)
    for name, tensors in _weights(kind, seed, dtype).items():
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        write_tensors(folder / name / f"{stem}.safetensors", tensors, {"format": "pt"})
    _write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(is_v))
    _write_json(folder / "model_index.json", _model_index(kind))
    _write_tokenizers(folder, kind)
    return TinyModel(folder, folder)


def _scheduler(is_v: bool) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if is_v else "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }


def _model_index(kind: str) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        **{name: ["transformers", class_name] for name, (class_name, _) in _clips(kind).items()},
    }
    if kind == "sdxl":
        extra = {"tokenizer_2": ["transformers", "CLIPTokenizer"], "force_zeros_for_empty_prompt": True}
    else:
        extra = {name: [None, None] for name in ("safety_checker", "feature_extractor")}
        extra["requires_safety_checker"] = False
    return index | extra


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
