"""A LoRA for SDXL, a DyLoRA, and a tuned SDXL model, for docs/resize_lora.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LAYERS = {
    f"input_blocks_4_1_transformer_blocks_0_attn{attention}_{layer}": (
        64,
        80 if attention == 2 and layer != "to_q" else 64,
    )
    for attention in (1, 2)
    for layer in ("to_q", "to_k", "to_v")
}


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into `folder`."""
    from library.tensorfile import read_header, read_tensors, write_tensors

    write_tensors(folder / "my_lora.safetensors", _lora(16), {"ss_network_module": "networks.lora"})
    write_tensors(
        folder / "my_dylora.safetensors",
        _lora(16),
        {"ss_network_module": "networks.dylora", "modelspec.implementation_version": "easel/0.1.0"},
    )
    tensors = read_tensors(read_header(models["sdxl"]))
    for name in list(tensors):
        if name.endswith((".to_q.weight", ".self_attn.q_proj.weight")):
            tensors[name] = tensors[name] + 0.1 * tensors[name].roll(1, 0)
    write_tensors(folder / "my_tuned_model.safetensors", tensors)


def _lora(rank: int) -> dict[str, object]:
    import torch

    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, (out, inner) in LAYERS.items():
        name = f"lora_unet_{layer}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inner, generator=draw)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, generator=draw)
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    return tensors
