"""LoRAs, a learned word, prompts, pictures, guides and an SD3.5 model for docs/gen_img.md; SDXL is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_MODULES = {
    **{f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_{key}": 64 for key in "qkv"},
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": 32,
}
PROMPTS = """# portraits
a portrait of a woman in the rain --w 64 --h 96 --d 1
a portrait of a man in the rain --n blurry --d 2 --am 0.5
"""


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into `folder`."""
    import torch
    from PIL import Image

    from library.checkpoint.embeddings import write_embedding
    from library.tensorfile import write_tensors

    write_tensors(folder / "style.safetensors", _lora(4))
    write_tensors(folder / "subject.safetensors", _lora(8))
    (folder / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    draw = torch.Generator().manual_seed(1)
    vectors = {name: torch.randn(2, width, generator=draw) for name, width in (("clip_l", 32), ("clip_g", 48))}
    write_embedding(folder / "blarg.safetensors", vectors, word="blarg")
    _write_sd3(folder)
    Image.new("RGB", (64, 64), "navy").save(folder / "photo.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(folder / "mask.png")
    regions = Image.new("RGB", (64, 64), (255, 0, 0))
    regions.paste((0, 255, 0), (32, 0, 64, 64))
    regions.save(folder / "map.png")
    _write_guides(folder)


def _lora(rank: int) -> dict[str, object]:
    import torch

    draw = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, width in _MODULES.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=draw) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(width, rank, generator=draw) * 0.1
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return tensors


def _write_guides(folder: Path) -> None:
    """A ControlNet, a ControlNet-LLLite and a CLIP model, for the tiny SDXL."""
    import torch
    from diffusers import ControlNetModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from library.models.unet import UNet
    from networks.control_net_lllite import create_network
    from tests.tiny_unets import CLIP_G_WIDTH, unet_settings

    unet = UNet(**unet_settings("sdxl"))
    ControlNetModel.from_unet(unet).save_pretrained(folder / "controlnet-canny-sdxl-1.0")
    network = create_network(1.0, 8, None, None, None, unet, generator=torch.manual_seed(1), cond_emb_dim="8")
    network.save_weights(folder / "lines.safetensors", torch.float32, {})
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**settings, image_size=32, patch_size=8, projection_dim=CLIP_G_WIDTH)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "CLIP-ViT-bigG-14-laion2B-39B-b160k")


def _write_sd3(folder: Path) -> None:
    """SD3.5 with its VAE in one file, and the text encoders beside it."""
    from examples.tiny_sd3.make import build_tiny_sd3
    from library.tensorfile import read_header, read_tensors, write_tensors

    tiny = build_tiny_sd3(folder, variant="5-medium", bundle=False)
    assert tiny.t5xxl and tiny.vae
    tiny.t5xxl.rename(folder / "t5xxl_fp16.safetensors")
    vae = {f"first_stage_model.{name}": tensor for name, tensor in read_tensors(read_header(tiny.vae)).items()}
    write_tensors(folder / "sd3.5_medium.safetensors", {**read_tensors(read_header(tiny.model)), **vae})
    tiny.model.unlink()
    tiny.vae.unlink()
