"""Files of SD3-medium, SD3.5-medium and SD3.5-large with true headers and no numbers: sparse, so they take no room.

Whoever reads headers only (--dry_run, the forecast) sees the published models; whoever reads weights reads zeros.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory_table import MODELS
from examples.tiny_sd3.tokenizers import write_tokenizers

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
_BYTES = 2  # fp16, as the published files
_DENOISER = "model.diffusion_model."
_VAE_WIDTHS = (128, 256, 512, 512)


def write_files(folder: Path, name: str) -> list[str]:
    """Write the parts of a model.

    Args:
        folder: Made if it is missing.
        name: Of `benchmarks.memory_table.MODELS`.

    Returns:
        The flags that name them.
    """
    write_tokenizers(folder)
    parts = {"pretrained_model_name_or_path": _denoiser(name), "vae": _shapes_of(_sd3_vae), "t5xxl": _t5()}
    parts |= {"clip_l": _shapes_of(clip, 768, 12), "clip_g": _shapes_of(clip, 1280, 32)}
    flags = []
    for part, shapes in parts.items():
        path = folder / f"{part}-{name}.safetensors"
        write_header(path, shapes)
        flags.append(f"--{part}={path}")
    return flags


def write_header(path: Path, shapes: Shapes) -> None:
    """A safetensors file with a hole where the numbers would be."""
    table, place = {}, 0
    for name, shape in shapes.items():
        end = place + prod(shape) * _BYTES
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    raw = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + place)


def _shapes(model: nn.Module) -> Shapes:
    state = model.state_dict().items()
    return {name: tuple(tensor.shape) for name, tensor in state if not name.endswith("position_ids")}


def _denoiser(name: str) -> Shapes:
    import torch

    from library.models.mmdit import MMDiT

    with torch.device("meta"):
        return {_DENOISER + key: shape for key, shape in _shapes(MMDiT(MODELS[name])).items()}


def _shapes_of(build: Callable[..., nn.Module], *sizes: int) -> Shapes:
    import torch

    with torch.device("meta"):
        return _shapes(build(*sizes))


def _sd3_vae() -> nn.Module:
    return _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)


def sd_vae(*, is_tiny: bool = False) -> nn.Module:
    """That of SD 1.x, 2.x and SDXL. On the device that is in force."""
    return _vae((32,) * 4 if is_tiny else _VAE_WIDTHS, latent_channels=4)


def _vae(widths: Sequence[int] = _VAE_WIDTHS, **kind: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=list(widths),
        layers_per_block=2,
        **kind,
    )


def clip(width: int, layers: int) -> nn.Module:
    """A CLIP text encoder with its projection. On the device that is in force."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
    )
    return CLIPTextModelWithProjection(config)


def _t5() -> Shapes:
    import torch
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        return _shapes(T5EncoderModel(config))
