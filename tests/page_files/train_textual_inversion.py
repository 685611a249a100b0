"""What docs/train_textual_inversion.md reads: captions with the word, prompts, SD3, a diffusers folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into the folder. The models of U-Nets are there."""
    from examples.tiny_sd3.make import build_tiny_sd3
    from tests.tiny_unets import write_sd1_folder

    for caption in (folder / "pictures").glob("*.txt"):
        caption.write_text("a blarg on a table\n", encoding="utf-8")
    (folder / "my_prompts.txt").write_text("a blarg, red --w 64 --h 64 --d 1 --s 1\n", encoding="utf-8")
    built = build_tiny_sd3(folder / "sd3_parts")
    shutil.copy(built.model, folder / "sd3_medium_incl_clips_t5xxlfp16.safetensors")
    shutil.copytree(folder / "sd3_parts" / "tokenizer_3", folder / "tokenizer_3")
    write_sd1_folder(folder / "stable-diffusion-v1-5")
