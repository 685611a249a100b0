"""Options of the script that converts LoRA files and checks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(OptionGroup):
    """Which file, what becomes of it, and what is checked."""

    title: ClassVar[str] = "Conversion"

    source: Path | None = opt(None, "The LoRA, in any layout. It stays as it is.", positional=True)
    target: str = opt(
        "", "The file to write, .safetensors. Not given means that the source is only checked.", positional=True
    )
    to: str | None = opt(
        None,
        "Layout of the file to write. kohya: ComfyUI, Forge, A1111, and diffusers but for SD3. diffusers: the names of "
        "diffusers and peft. native: published names with dots, for ComfyUI and Forge.",
        choices=("kohya", "diffusers", "native"),
    )
    naming: str | None = opt(
        None,
        "Names of layers in a kohya file for SD1, SD2 or SDXL. Not set means the usual ones: published for SDXL, "
        "diffusers for SD1 and SD2.",
        choices=("published", "diffusers"),
    )
    fold_alpha: bool = opt(
        False,
        "Write no alpha tensors: the strength goes into the weights, for programs that refuse a file with alpha (A1111 "
        "with SD3). Only for --to kohya; the other layouts are always written so.",
    )
    save_precision: str | None = opt(
        None,
        "Number format of the file to write. Not set means that of the source; fp8 becomes fp16.",
        choices=PRECISIONS,
    )
    family: str | None = opt(
        None,
        "The model that a file is for, where it has modules of text encoders only and could be for several.",
        choices=("sd", "sdxl", "sd3"),
    )
    overwrite: bool = opt(False, "The target may be there already.")
    verify_export: bool = opt(
        False,
        "Check what ComfyUI, Forge, A1111 and diffusers make of the target (or of the source, if there is no target), "
        "and end with code 2 if one that reads such files does something else.",
    )
    reference: Path | None = opt(
        None,
        "For --verify_export without target: the LoRA that the source was made from. Its effect is what every program "
        "is compared with.",
    )

    def check(self) -> Iterator[str]:
        if not self.target:
            given: dict[str, str | bool | None] = {"to": self.to, "naming": self.naming}
            given |= {"fold_alpha": self.fold_alpha, "save_precision": self.save_precision, "overwrite": self.overwrite}
            if used := [f"--{name}" for name, value in given.items() if value]:
                yield f"{', '.join(used)}: there is no file to write. Give its name after the source."
            elif not self.verify_export:
                yield "There is nothing to do. Give a file to write and --to, or --verify_export."
            if self.reference is not None and not self.verify_export:
                yield "--reference is for --verify_export. Give that too."
            return
        if self.to is None:
            yield "--to is needed, the layout of the file to write: kohya, diffusers or native."
        if not self.target.endswith(".safetensors"):
            yield f"{self.target}: the file to write must end in .safetensors."
        if self.naming and self.to not in (None, "kohya"):
            yield f"--naming is for --to kohya, not for {self.to}. Leave it out."
        if self.reference is not None:
            yield "--reference is for a check without target: a file that is written is compared with its source."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.fold_alpha and self.to in ("diffusers", "native"):
            yield "fold_alpha", f"--to {self.to} is always written so"


@dataclass(frozen=True, kw_only=True)
class ConvertLoraOptions(CommonOptions):
    """Options of networks/convert_lora.py."""

    conversion: ConversionOptions = field(default_factory=ConversionOptions)

    leading: ClassVar[tuple[str, ...]] = ("conversion",)


CONVERT_LORA_SCRIPT: ScriptText = {
    "prog": "networks/convert_lora.py",
    "description": "Write a LoRA in the layout that another program reads, or check which programs read it.",
    "example": "python networks/convert_lora.py my_lora.safetensors for_diffusers.safetensors --to diffusers",
    "ignored": {},
}
