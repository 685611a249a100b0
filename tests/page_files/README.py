"""A LoRA for the base that is shipped, where the first command of README.md leaves one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put it into `folder`."""
    import torch

    from library.tensorfile import read_header, write_tensors

    shapes = read_header(folder / "examples" / "tiny_sd3" / "base" / "sd3_tiny.safetensors").shapes()
    layer = "joint_blocks.0.x_block.attn.proj"
    out, inner = shapes[f"model.diffusion_model.{layer}.weight"]
    sizes = {"lora_down": (4, inner), "lora_up": (out, 4)}
    name = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{name}.{part}.weight": torch.full(size, 0.01) for part, size in sizes.items()}
    path = folder / "output" / "quickstart" / "run-1" / "zorp.safetensors"
    path.parent.mkdir(parents=True)
    write_tensors(path, {**tensors, f"{name}.alpha": torch.tensor(4.0)}, {})
