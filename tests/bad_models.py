"""Bad and wrong weights as people have them: models, parts of models and LoRA files. All of it is made here.

A file of `weights` has the header of a real one, and every number in it is NaN: what is told of it was told from its
header. `BAD_MODELS` are made from the bytes of a good model.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]

SDXL: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": (0, 4, 3, 3),
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (0, 2048),
    "first_stage_model.decoder.conv_in.weight": (0, 4, 3, 3),
}
SD1: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": (0, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (0, 768),
}
SD2: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": (0, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (0, 1024),
}
FLUX: Shapes = {"double_blocks.0.img_attn.qkv.weight": (0, 3072)}
CONTROLNET: Shapes = {"controlnet_blocks.0.weight": (0, 1536)}
NOTHING_KNOWN: Shapes = {"layer.weight": (1, 1)}

SDXL_VAE: Shapes = {"decoder.conv_in.weight": (0, 4, 3, 3), "encoder.conv_in.weight": (0, 3, 3, 3)}
CLIP_G: Shapes = {"text_model.embeddings.token_embedding.weight": (0, 48), "text_projection.weight": (0, 48)}
OPEN_CLIP: Shapes = {"transformer.resblocks.0.ln_1.weight": (48,)}
T5: Shapes = {"encoder.block.0.layer.0.SelfAttention.q.weight": (0, 96)}

_FACTORS = {"lora_down.weight": (4, 0), "lora_up.weight": (0, 4)}


def _lora(*modules: str) -> Shapes:
    return {f"{module}.{factor}": shape for module in modules for factor, shape in _FACTORS.items()}


SD3_LORA = _lora(*(f"lora_unet_joint_blocks_0_x_block_attn_{layer}" for layer in ("qkv", "proj")))
CLIP_LORA = _lora("lora_te1_text_model_encoder_layers_0_mlp_fc1")
SDXL_LORA = _lora("lora_unet_input_blocks_4_1_proj_in")


def weights(shapes: Shapes, number: bytes = b"\xff\xff") -> bytes:
    """A safetensors file of fp16 tensors, every number of them the same."""
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + number * (end // 2)


def shapes_in(content: bytes) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def without(content: bytes, part: str) -> bytes:
    """The tensors of a file that do not have `part` in their names, all NaN."""
    return weights({name: shape for name, shape in shapes_in(content).items() if part not in name})


def part_of(content: bytes, prefix: str, *, leave_out: str = "\0") -> bytes:
    """The tensors below a prefix as a file of their own, all NaN, but for those with `leave_out` in their names."""
    named = {name.removeprefix(prefix): shape for name, shape in shapes_in(content).items() if name.startswith(prefix)}
    return weights({name: shape for name, shape in named.items() if leave_out not in name})


def with_number(content: bytes, name: str, number: float) -> bytes:
    """The same fp16 or fp32 file with one number of a tensor changed."""
    end = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:end])[name]
    changed = struct.pack({"F16": "<e", "F32": "<f"}[entry["dtype"]], number)
    start = end + entry["data_offsets"][0]
    return content[:start] + changed + content[start + len(changed) :]


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def payload(mark: Path, protocol: int = 2) -> bytes:
    """A pickle that makes the file `mark` if anybody loads it, the way a malicious .ckpt runs its code."""
    return pickle.dumps({"state_dict": _Payload(mark)}, protocol=protocol)


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

BAD_MODELS: Mapping[str, Callable[[bytes], bytes]] = {
    "cut.safetensors": lambda content: content[:-1000],
    "cut_header.safetensors": lambda content: content[:400],
    "longer.safetensors": lambda content: content + bytes(1000),
    "page.safetensors": lambda content: HTML,
    "empty.safetensors": lambda content: b"",
    "lfs.safetensors": lambda content: GIT_LFS,
    "gguf.safetensors": lambda content: b"GGUF" + bytes(50),
    "xl.safetensors": lambda content: weights(SDXL),
    "sd1.safetensors": lambda content: weights(SD1),
    "sd2.safetensors": lambda content: weights(SD2),
    "flux.safetensors": lambda content: weights(FLUX),
    "controlnet.safetensors": lambda content: weights(CONTROLNET),
    "unknown.safetensors": lambda content: weights(NOTHING_KNOWN),
    "lora.safetensors": lambda content: weights(SD3_LORA),
    "vae.safetensors": lambda content: weights(SDXL_VAE),
    "without_vae.safetensors": lambda content: without(content, "first_stage_model."),
    "without_clip.safetensors": lambda content: without(content, "clip_"),
    "half.safetensors": lambda content: without(content, "joint_blocks.1.x_block.mlp"),
}
