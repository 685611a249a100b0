"""Two tiny SD 1.x models that docs/model_files.md merges, beside the models that every page has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.tiny_unets import write_sd1


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into `folder`, with the parts of a tiny SD3."""
    from examples.tiny_sd3.make import build_tiny_sd3
    from library.tensorfile import read_header, read_tensors, write_tensors

    for seed, name in enumerate(("anime", "photo"), start=1):
        made = write_sd1(folder / name, seed=seed).path
        shutil.move(made, folder / f"{name}.safetensors")
        shutil.rmtree(folder / name)
    tiny = build_tiny_sd3(folder / "tiny_sd3", bundle=False)
    assert tiny.vae and tiny.clip_l and tiny.clip_g and tiny.t5xxl
    vae = {f"first_stage_model.{name}": tensor for name, tensor in read_tensors(read_header(tiny.vae)).items()}
    write_tensors(folder / "sd3_medium.safetensors", {**read_tensors(read_header(tiny.model)), **vae})
    shutil.move(tiny.clip_l, folder / "clip_l.safetensors")
    shutil.move(tiny.clip_g, folder / "clip_g.safetensors")
    shutil.move(tiny.t5xxl, folder / "t5xxl_fp16.safetensors")
    shutil.rmtree(folder / "tiny_sd3")
