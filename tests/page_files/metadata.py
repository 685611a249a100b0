"""A LoRA with the metadata of a training, for docs/metadata.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

METADATA = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "8",
    "ss_network_alpha": "4.0",
    "ss_steps": "100",
    "ss_output_name": "my_dog",
    "ss_tag_frequency": json.dumps({"photos": {"sks dog": 12, "beach": 3}}),
}


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put it into `folder`."""
    import torch

    from library.tensorfile import write_tensors

    (folder / "out").mkdir()
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    sizes = {"lora_down": (8, 64), "lora_up": (64, 8)}
    tensors = {f"{layer}.{part}.weight": torch.ones(size) for part, size in sizes.items()}
    write_tensors(folder / "out" / "my_dog.safetensors", {**tensors, f"{layer}.alpha": torch.tensor(4.0)}, METADATA)
