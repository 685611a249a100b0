"""Files that the commands of docs/convert_lora.md read: LoRAs of three layers each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SD3 = ("joint_blocks_0_x_block_attn_qkv", "joint_blocks_0_x_block_mlp_fc1", "final_layer_adaLN_modulation_1")
SDXL = ("input_blocks_4_1_proj_in", "middle_block_1_proj_out", "output_blocks_3_0_emb_layers_1")


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Write them."""
    sd3 = _kohya(SD3)
    save_file(sd3, folder / "my_sd3_lora.safetensors")
    save_file({key: t for key, t in sd3.items() if not key.endswith("alpha")}, folder / "from_elsewhere.safetensors")
    save_file(_kohya(SDXL), folder / "my_sdxl_lora.safetensors")
    base = "base_model.model.transformer_blocks.0.attn.to_q"
    save_file({f"{base}.lora_{end}.weight": torch.ones(4, 4) for end in "AB"}, folder / "from_peft.safetensors")


def _kohya(layers: tuple[str, ...]) -> dict[str, Tensor]:
    tensors = {}
    for name in layers:
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, 6)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(12, 4)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    return tensors
