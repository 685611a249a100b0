"""Options of the script that puts parts of SD3 models together, and takes such models apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.model_files.options.precisions import ANY_PRECISION
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt

DEFAULT_OUTPUT = Path("merged_model.safetensors")
_PARTS = ("vae", "clip_l", "clip_g", "t5xxl")


@dataclass(frozen=True, kw_only=True)
class JoinOptions(OptionGroup):
    """The parts, and the file that they become."""

    title: ClassVar[str] = "Parts into one file"

    dit: Path | None = opt(
        None, "MMDiT: a file in any layout, with or without other parts inside, which are kept; or a diffusers folder."
    )
    vae: Path | None = opt(None, "VAE of SD3.")
    clip_l: Path | None = opt(None, "CLIP-L text encoder.")
    clip_g: Path | None = opt(None, "CLIP-G text encoder.")
    t5xxl: Path | None = opt(None, "T5-XXL text encoder. In fp8 it stays as it is.")
    output: Path = opt(DEFAULT_OUTPUT, "File to write.")
    device: str = opt("cpu", "Where numbers are converted for --save_precision, for instance cuda.")
    save_precision: str | None = opt(
        None,
        "Precision of all weights: float, fp16, bf16, fp8_e4m3fn or fp8_e5m2. Not set: each keeps its own.",
    )
    allow_pickle: bool = opt(False, "Also read .ckpt files that hold more than weights. Nothing in them is run.")

    @property
    def parts(self) -> dict[str, Path]:
        """{part: file} of those that are given beside the MMDiT."""
        return {name: getattr(self, name) for name in _PARTS if getattr(self, name) is not None}

    def check(self) -> Iterator[str]:
        if self.save_precision is not None and self.save_precision not in ANY_PRECISION:
            known = "float, fp16, bf16, fp8_e4m3fn, fp8_e5m2"
            yield f"--save_precision needs one of {known}, got '{self.save_precision}'."
        if self.output.suffix.lower() != ".safetensors":
            yield f"--output {self.output} must end in .safetensors."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.save_precision is None:
            yield "device", "nothing is computed without --save_precision"


@dataclass(frozen=True, kw_only=True)
class SplitOptions(OptionGroup):
    """The other way."""

    title: ClassVar[str] = "One file into parts"

    split: Path | None = opt(
        None, "File to take apart: its MMDiT, VAE and text encoders become files of their own, as they are published."
    )
    output_dir: Path | None = opt(
        None, "Folder for dit, vae, clip_l, clip_g and t5xxl (.safetensors), of which none may be there yet."
    )

    def check(self) -> Iterator[str]:
        if (self.split is None) != (self.output_dir is None):
            yield "--split and --output_dir need each other: the file to take apart, and the folder for its parts."


@dataclass(frozen=True, kw_only=True)
class Sd3PartsOptions(CommonOptions):
    """Options of tools/merge_sd3_safetensors.py."""

    join: JoinOptions = field(default_factory=JoinOptions)
    split: SplitOptions = field(default_factory=SplitOptions)

    leading: ClassVar[tuple[str, ...]] = ("join", "split")
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = (("dit", "split"),)

    def check(self) -> Iterator[str]:
        given = ["dit", *self.join.parts] if self.join.dit is not None else list(self.join.parts)
        given += ["output"] if self.join.output != DEFAULT_OUTPUT else []
        if self.split.split is not None and given:
            yield f"--split takes a file apart, and {', '.join(f'--{name}' for name in given)} put parts together. "
            yield "Do one after the other."


SD3_PARTS_SCRIPT: ScriptText = {
    "prog": "tools/merge_sd3_safetensors.py",
    "description": "Put the parts of an SD3 / SD3.5 model into one file, or take such a file apart.",
    "example": "python tools/merge_sd3_safetensors.py --dit sd3.5_medium.safetensors --clip_l clip_l.safetensors "
    "--clip_g clip_g.safetensors --t5xxl t5xxl_fp16.safetensors --output sd3.5_medium_full.safetensors",
    "ignored": {},
}
