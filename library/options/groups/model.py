"""Options about the model files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionGroup):
    """The base model, and how its files are read."""

    title: ClassVar[str] = "Model"

    pretrained_model_name_or_path: str | None = opt(
        None,
        "Base model: a single-file checkpoint or a diffusers folder, for Stable Diffusion 1.x, 2.x and SDXL also the "
        "id of one on the Hugging Face hub.",
    )
    vae: Path | None = opt(
        None,
        "VAE to use instead of the one in the base model: a file, a diffusers folder, or the id of one on the Hugging "
        "Face hub.",
    )
    allow_pickle: bool = opt(
        False,
        "Read .ckpt files that hold more than tensors: only their weights are read, and nothing in them is run.",
    )
    tokenizer_dir: Path | None = opt(
        None,
        "Folder with tokenizers: a diffusers model, a ComfyUI installation, or a folder with one tokenizer. "
        "Goes before every other place.",
    )
    tokenizer_cache_dir: Path | None = opt(
        None, "Folder with one folder for each tokenizer, named after its hub id with / written as _."
    )
    disable_mmap_load_safetensors: bool = opt(
        False, "Read weights with ordinary file access instead of memory mapping: faster on some network drives."
    )
    v2: bool = opt(False, "The base model is Stable Diffusion 2.x; its file says so too.")
    v_parameterization: bool = opt(False, "The base model predicts v instead of the noise.")
    clip_skip: int | None = opt(None, "Use the n-th last layer of the text encoder.", unit="layers", minimum=1)
    max_token_length: int | None = opt(
        None, "Length of captions; longer ones are cut. Not set means 75.", unit="tokens", choices=(75, 150, 225)
    )
