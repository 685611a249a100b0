"""Failure catalogue, section D: models, their parts and LoRA files. Each row has a test that starts with its number.

What is refused ends with exit code 2 and one error that names every bad file and a way out. It comes from headers:
every number in these files is NaN, and reading one would end with a message about that. No file is touched, and
nothing in a file is executed. What is odd but good is trained.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bad_models
import pytest
import torch
from bad_models import (
    BAD_MODELS,
    CLIP_G,
    CLIP_LORA,
    OPEN_CLIP,
    SD3_LORA,
    SDXL,
    SDXL_LORA,
    SDXL_VAE,
    T5,
    part_of,
    payload,
    weights,
    with_number,
)
from safetensors.torch import load_file, save_file

MODEL = "--pretrained_model_name_or_path"
UNET_ONLY = "--network_train_unet_only"
STEP = "--max_train_steps=1"
FOLDER = "FOLDER"  # in flags and words, stands for the folder with the files of the test
NO_RANKS = tuple(f"{half}_{layer}_dim=0" for half in ("context", "x") for layer in ("attn", "mlp", "mod"))
# what SD3_LORA was trained with
X_ATTENTION = ("--network_args", "train_block_indices=0", *(rank for rank in NO_RANKS if rank != "x_attn_dim=0"))
CLIP_L, CLIP_BIG, VAE, T5XXL = (
    *("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
    *("first_stage_model.", "text_encoders.t5xxl.transformer."),
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Bad:
    """Files that cannot be used.

    Attributes:
        files: {name: content, made from the bytes of a good model}.
        flags: That give them.
        words: What the error says: the file, what is wrong, and what to do.
    """

    files: dict[str, Callable[[bytes], bytes]]
    flags: tuple[str, ...]
    words: tuple[str, ...]


def model(name: str, *words: str) -> Bad:
    """A file of the corpus given as the model."""
    return Bad({name: BAD_MODELS[name]}, (f"{MODEL}=FOLDER/{name}",), (MODEL, f"FOLDER/{name}", *words))


def part(flag: str, content: Callable[[bytes], bytes], *words: str) -> Bad:
    """A file given as a part of the model."""
    return Bad({"part.safetensors": content}, (f"--{flag}=FOLDER/part.safetensors",), ("FOLDER/part.safetensors", *words))


def lora(shapes: bad_models.Shapes, flags: tuple[str, ...], *words: str) -> Bad:
    """A LoRA file given as --network_weights."""
    name = "l.safetensors"
    return Bad({name: lambda _: weights(shapes)}, (*flags, f"--network_weights=FOLDER/{name}"), (f"FOLDER/{name}", *words))


BAD = {
    # damaged
    "D1 model": model("cut.safetensors", "is truncated", "of", "Download or copy the file again"),
    "D1 header": model("cut_header.safetensors", "is truncated: 400", "again"),
    "D1 longer": model("longer.safetensors", "1,000 bytes more", "again"),
    "D1 read without mapping": Bad(
        {"cut.safetensors": BAD_MODELS["cut.safetensors"]},
        (f"{MODEL}=FOLDER/cut.safetensors", "--disable_mmap_load_safetensors"),
        ("FOLDER/cut.safetensors is truncated", "Download"),
    ),
    "D1 LoRA": Bad(
        {"l.safetensors": lambda _: weights({"lora_unet_x.lora_down.weight": (4, 4)})[:-3]},
        ("--network_weights=FOLDER/l.safetensors",),
        ("--network_weights: FOLDER/l.safetensors is truncated", "again"),
    ),
    "D1 base weights": Bad(
        {"l.safetensors": lambda _: weights({"lora_unet_x.lora_down.weight": (4, 4)})[:-3]},
        ("--base_weights", "FOLDER/l.safetensors"),
        ("--base_weights: FOLDER/l.safetensors is truncated", "again"),
    ),
    "D1 several": Bad(
        {"v.safetensors": lambda good: good[:-9], "t.safetensors": lambda _: b""},
        ("--vae=FOLDER/v.safetensors", "--clip_l=FOLDER/gone.safetensors", "--t5xxl=FOLDER/t.safetensors"),
        (
            *("--vae: FOLDER/v.safetensors is truncated", "--clip_l: FOLDER/gone.safetensors does not exist"),
            *("--t5xxl: FOLDER/t.safetensors is empty", "has t.safetensors, v.safetensors"),
        ),
    ),
    "D2 empty": model("empty.safetensors", "is empty", "Download"),
    "D2 web page": model("page.safetensors", "is a web page", "login"),
    "D2 git-lfs": model("lfs.safetensors", "git-lfs pointer", "git lfs pull"),
    "D2 another format": model("gguf.safetensors", "is not a safetensors file", "Check the download"),
    "D2 missing": Bad({}, (f"{MODEL}=FOLDER/no/sd3.safetensors",), ("sd3.safetensors does not exist", "nearest folder")),
    "D2 hub name": Bad({}, (f"{MODEL}=someone/sd3",), ("someone/sd3 does not exist", "not downloaded", "give a file")),
    "D2 nothing": Bad({}, (f"{MODEL}=",), (f"{MODEL} is needed",)),
    "D2 folder": Bad({}, (f"{MODEL}=FOLDER",), ("FOLDER is a folder without", "Give the .safetensors file")),
    "D2 flags glued": Bad(
        {},
        (f"{MODEL}=sd3.safetensors--save_precision=fp16",),
        ("a space is missing", f"{MODEL}=sd3.safetensors and --save_precision=fp16"),
    ),
    # of another kind
    "D3 SDXL": model("xl.safetensors", "is an SDXL model", "sdxl_train_network.py"),
    "D3 SD 1": model("sd1.safetensors", "is a Stable Diffusion 1.x model", "with train_network.py"),
    "D3 SD 2": model("sd2.safetensors", "is a Stable Diffusion 2.x model", "--v2"),
    "D3 FLUX": model("flux.safetensors", "is a FLUX model", "cannot be trained here"),
    "D3 ControlNet": model("controlnet.safetensors", "is a ControlNet", "Give the base model"),
    "D3 unknown": model("unknown.safetensors", "no model that is known here", "Check the path"),
    "D3 LoRA": model("lora.safetensors", "is a LoRA", "--network_weights"),
    "D3 VAE": model("vae.safetensors", "is a VAE alone", "--vae"),
    "D4 incomplete": Bad(
        {"d.safetensors": lambda _: weights({"transformer_blocks.0.attn.add_q_proj.weight": (4, 4), "pos_embed.proj.weight": (4, 4, 2, 2)})},
        (f"{MODEL}=FOLDER/d.safetensors",),
        ("FOLDER/d.safetensors", "missing", "again"),
    ),
    # parts
    "D5 CLIP-G as CLIP-L": part("clip_l", lambda _: weights(CLIP_G), "has a CLIP of width 48", "Give the right file as --clip_l"),
    "D5 T5 as CLIP-L": part("clip_l", lambda _: weights(T5), "has no CLIP-L text encoder", "T5", "Give"),
    "D5 CLIP as T5": part("t5xxl", lambda _: weights(CLIP_G), "has no T5 text encoder", "CLIP", "Give"),
    "D5 open_clip": part("clip_g", lambda _: weights(OPEN_CLIP), "open_clip", "Hugging Face names"),
    "D5 half a CLIP-L": part("clip_l", lambda good: part_of(good, CLIP_L, leave_out="layers.1.mlp"), "missing", "layers.1.mlp.fc1.weight", "complete"),
    "D5 half a CLIP-G": part("clip_g", lambda good: part_of(good, CLIP_BIG, leave_out="layers.0.self_attn.q_proj"), "missing", "q_proj.weight", "complete"),
    "D5 half a T5": part("t5xxl", lambda good: part_of(good, T5XXL, leave_out="block.1"), "missing", "block.1", "complete"),
    "D6 no VAE": model("without_vae.safetensors", "has no VAE inside", "--vae"),
    "D6 no CLIP": model("without_clip.safetensors", "no CLIP-L text encoder, no CLIP-G text encoder", "--clip_l and --clip_g"),
    "D6 half an MMDiT": model("half.safetensors", "4 missing", "joint_blocks.1.x_block.mlp.fc1.weight", "again"),
    "D6 VAE of SDXL": part("vae", lambda _: weights(SDXL_VAE), "--vae: ", "has the VAE of SDXL", "Give an SD3 VAE"),
    "D6 VAE in an SDXL": part("vae", lambda _: weights(SDXL), "has the VAE of SDXL,", "Give"),
    "D6 half a VAE": part("vae", lambda good: part_of(good, VAE, leave_out="encoder.mid"), "missing", "encoder.mid", "complete"),
    # LoRA files
    "D7 SDXL": lora(SDXL_LORA, (), "is a LoRA for SDXL, the model is SD3", "Give a LoRA"),
    "D7 SDXL with its ranks": lora(SDXL_LORA, ("--dim_from_weights",), "is a LoRA for SDXL", "Give a LoRA"),
    "D7 no text encoders": lora(
        SD3_LORA, (*X_ATTENTION, "--network_dim=4"), "has no modules for text encoders", f"Add {UNET_ONLY}"
    ),
    "D7 text encoders": lora(
        {**SD3_LORA, **CLIP_LORA}, (*X_ATTENTION, UNET_ONLY), "has modules for text encoders", f"{UNET_ONLY} leaves out"
    ),
    "D7 other arguments": lora(
        SD3_LORA, (UNET_ONLY,), "is a LoRA for SD3", "modules of the network are not in it", "same --network_args"
    ),
    "D7 a model": Bad({}, ("--network_weights=MODEL",), ("MODEL is a whole checkpoint", "Give a LoRA")),
    "D7 missing": Bad({}, ("--network_weights=FOLDER/l.safetensors",), ("--network_weights: FOLDER/l.safetensors does not exist",)),
    "D7 base weights": Bad(
        {"xl.safetensors": lambda _: weights(SDXL_LORA)},
        ("--base_weights", "FOLDER/xl.safetensors"),
        ("--base_weights FOLDER/xl.safetensors is a LoRA for SDXL", "Give a LoRA"),
    ),
    "D8 rank": lora(
        SD3_LORA,
        (*X_ATTENTION, UNET_ONLY, "--network_dim=8"),
        *("does not fit in 2 modules", "lora_unet_joint_blocks_0_x_block_attn_qkv"),
        *("has rank 4 in the file and 8 here", "--dim_from_weights"),
    ),
}


@pytest.fixture
def dataset(training: Any) -> Path:
    return training.dataset(training.examples)


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_files_are_named_before_weights_are_read(case, training, dataset, nan_model, refused):
    folder = training.folder / "models"
    folder.mkdir()
    for name, content in case.files.items():
        (folder / name).write_bytes(content(nan_model.read_bytes()))
    before = contents(folder)

    def placed(text: str) -> str:
        return text.replace("FOLDER", str(folder)).replace("MODEL", str(nan_model))

    ended = refused(dataset, STEP, *map(placed, case.flags))
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert [word for word in map(placed, case.words) if word not in ended.error] == [], ended.error
    assert contents(folder) == before
