"""LoRAs for SDXL and for SD3.5, and an SD3.5 model without text encoders, for docs/merge_lora.md."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SDXL = {
    **{f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_{key}": (64, 64) for key in "qkv"},
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (32, 32),
}


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into `folder`, where the SDXL model is."""
    from examples.tiny_sd3.make import build_tiny_sd3
    from library.tensorfile import read_header, write_tensors

    write_tensors(folder / "style.safetensors", _lora(SDXL, 16))
    write_tensors(folder / "subject.safetensors", _lora(SDXL, 8))
    tiny = build_tiny_sd3(folder / "tiny", variant="5-medium", bundle=False)
    shutil.move(tiny.model, folder / "sd3.5_medium.safetensors")
    shutil.rmtree(folder / "tiny")
    header = read_header(folder / "sd3.5_medium.safetensors")
    layer = "joint_blocks.0.x_block.attn.proj"
    sizes = header.shapes()[f"model.diffusion_model.{layer}.weight"]
    modules = {f"lora_unet_{layer.replace('.', '_')}": sizes, "lora_te1_text_model_encoder_layers_0_mlp_fc1": (64, 32)}
    write_tensors(folder / "sd35_lora.safetensors", _lora(modules, 4))


def _lora(sizes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, Tensor]:
    import torch

    draw = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, (out, inner) in sizes.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inner, generator=draw)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, generator=draw)
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    return tensors
