"""Options about the model that draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class DrawingModelOptions(OptionGroup):
    """The model, and how it reads texts."""

    title: ClassVar[str] = "Model"

    ckpt: str | None = opt(
        None,
        "The model: a single-file checkpoint or a diffusers folder; of Stable Diffusion 1.x, 2.x and SDXL also the id "
        "of one on the Hugging Face hub.",
    )
    vae: Path | None = opt(None, "VAE to use instead of the one in the model: a file or a diffusers folder.")
    v1: bool = opt(False, "The model is Stable Diffusion 1.x. Not needed: its file says so.")
    v2: bool = opt(False, "The model is Stable Diffusion 2.x. Not needed: its file says so.")
    sdxl: bool = opt(False, "The model is SDXL. Not needed: its file says so.")
    sd3: bool = opt(False, "The model is SD3 or SD3.5. Not needed: its file says so.")
    v_parameterization: bool = opt(
        False, "The model predicts v instead of the noise. Not needed where its file is marked as such."
    )
    zero_terminal_snr: bool = opt(
        False, "The model was trained down to pure noise. Not needed where its file is marked as such."
    )
    tokenizer_dir: Path | None = opt(
        None, "Folder with tokenizers: a diffusers model, a ComfyUI installation, or a folder with one tokenizer."
    )
    tokenizer_cache_dir: Path | None = opt(
        None, "Folder with one folder for each tokenizer, named after its hub id with / written as _."
    )
    allow_pickle: bool = opt(
        False, "Read .ckpt files that hold more than tensors: only their weights are read, and nothing in them is run."
    )
    clip_skip: int | None = opt(None, "Use the n-th last layer of the text encoder.", unit="layers", minimum=1)
    max_embeddings_multiples: int | None = opt(
        None,
        "Length of prompts in steps of 75 tokens; longer ones are cut. Not set means as long as the texts need, up to "
        "225 tokens.",
        minimum=1,
        maximum=16,
    )
    emb_normalize_mode: str = opt(
        "original",
        "What follows after words are weighted: the mean (original) or the mean of the absolute values (abs) of what "
        "the encoder says is made what it was, or nothing.",
        choices=("original", "none", "abs"),
    )
    textual_inversion_embeddings: tuple[Path, ...] | None = opt(
        None, "Embedding files. The name of a file, without its ending, is the word in prompts that stands for it."
    )

    @property
    def chosen(self) -> str | None:
        """Name of the family; None where it is not said."""
        if self.v1 or self.v2:
            return "sd"
        return next((name for name in ("sdxl", "sd3") if getattr(self, name)), None)

    def check(self) -> Iterator[str]:
        asked = [f"--{name}" for name in ("v1", "v2", "sdxl", "sd3") if getattr(self, name)]
        if len(asked) > 1:
            yield f"{' and '.join(asked)} exclude each other. Keep one of them."


@dataclass(frozen=True, kw_only=True)
class Sd3DrawingOptions(OptionGroup):
    """What only SD3 and SD3.5 have."""

    title: ClassVar[str] = "SD3 / SD3.5"

    clip_l: Path | None = opt(None, "CLIP-L file; goes before the one in the model.")
    clip_g: Path | None = opt(None, "CLIP-G file; goes before the one in the model.")
    t5xxl: Path | None = opt(None, "T5-XXL file; goes before the one in the model. Without any, zeros stand for it.")
    t5xxl_max_token_length: int = opt(256, "Length of prompts for T5; longer ones are cut.", unit="tokens", minimum=1)
    apply_lg_attn_mask: bool = opt(False, "Hide padding from CLIP-L and CLIP-G, and set its outputs to zero.")
    apply_t5_attn_mask: bool = opt(False, "Hide padding from T5, and set its outputs to zero.")
    t5xxl_device: str | None = opt(
        None, "Where T5 runs: cpu, cuda:1 or another device. Not set means with the denoiser."
    )
    t5xxl_dtype: str | None = opt(
        None,
        "What T5's weights are kept in. Not set means the precision of the others.",
        choices=("fp32", "fp16", "bf16", "fp8", "fp8_e4m3fn", "int8"),
    )
