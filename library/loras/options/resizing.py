"""Options of the scripts that make a LoRA smaller: to another rank, or DyLoRA cut into all of its ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt

_RATIO = "sv_ratio"


@dataclass(frozen=True, kw_only=True)
class RankOptions(OptionGroup):
    """Which file, and what becomes of its ranks."""

    title: ClassVar[str] = "Resizing"

    model: Path | None = opt(None, "The LoRA, in the layout of kohya or diffusers. It stays as it is.")
    save_to: Path | None = opt(None, "The file to write, .safetensors, .ckpt, .pt or .pth, in the layout of --model.")
    new_rank: int = opt(
        4, "Rank of linear layers; the most that a module gets with --dynamic_method. No rank grows.", minimum=1
    )
    new_conv_rank: int | None = opt(
        None, "The same for convolutions, those of 1x1 included. Not set means --new_rank.", minimum=1
    )
    dynamic_method: str | None = opt(
        None,
        "Choose the rank of each module by its singular values. sv_ratio: those above the greatest / --dynamic_param. "
        "sv_cumulative: as many as make up the share --dynamic_param of their sum. sv_fro: as many as keep the share "
        "--dynamic_param of the Frobenius norm.",
        choices=("sv_ratio", "sv_fro", "sv_cumulative"),
    )
    dynamic_param: float | None = opt(
        None, "For --dynamic_method: a ratio of 1 or more for sv_ratio, else a share above 0, at most 1.", above=0
    )
    save_precision: str | None = opt(
        None,
        "Number format of the file to write. Not set means that of each tensor in --model; fp8 becomes fp16.",
        choices=PRECISIONS,
    )
    device: str | None = opt(None, "Where it is computed, for instance cuda. Not set means the CPU, which is fast too.")
    verbose: bool = opt(False, "Show rank and retained norm of each module.")

    def check(self) -> Iterator[str]:
        method, param = self.dynamic_method, self.dynamic_param
        if method is not None and param is None:
            example = "10" if method == _RATIO else "0.9"
            yield f"--dynamic_method {method} needs --dynamic_param, for instance {example}."
        elif method is None and param is not None:
            yield "--dynamic_param is only for --dynamic_method. Give that too, or leave it out."
        elif param is not None and method == _RATIO and param < 1:
            yield f"--dynamic_param {param} must be 1 or more for sv_ratio: the greatest singular value by the least."
        elif param is not None and method != _RATIO and param > 1:
            yield f"--dynamic_param {param} must be a share above 0, at most 1, for {method}."


@dataclass(frozen=True, kw_only=True)
class ResizeLoraOptions(CommonOptions):
    """Options of networks/resize_lora.py."""

    rank: RankOptions = field(default_factory=RankOptions)

    leading: ClassVar[tuple[str, ...]] = ("rank",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("model", "save_to")


RESIZE_LORA_SCRIPT: ScriptText = {
    "prog": "networks/resize_lora.py",
    "description": "Give a LoRA smaller ranks, so that its file shrinks and what it does stays as near as can be.",
    "example": "python networks/resize_lora.py --model my_lora.safetensors --save_to small.safetensors --new_rank 8",
    "ignored": {},
}


@dataclass(frozen=True, kw_only=True)
class CutOptions(OptionGroup):
    """Which file, and where it is cut."""

    title: ClassVar[str] = "Cutting"

    model: Path | None = opt(None, "A file of networks.dylora. It stays as it is.")
    save_to: Path | None = opt(
        None, "NAME.safetensors (or .ckpt, .pt, .pth): files NAME-000004.safetensors and so on, by rank, are written."
    )
    unit: int | None = opt(
        None, "Cut at every multiple of this rank; best the unit that was given to the training.", minimum=1
    )
    save_precision: str | None = opt(
        None,
        "Number format of the files to write. Not set means that of each tensor in --model; fp8 becomes fp16.",
        choices=PRECISIONS,
    )


@dataclass(frozen=True, kw_only=True)
class CutDyloraOptions(CommonOptions):
    """Options of networks/extract_lora_from_dylora.py."""

    cut: CutOptions = field(default_factory=CutOptions)

    leading: ClassVar[tuple[str, ...]] = ("cut",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("model", "save_to", "unit")


CUT_DYLORA_SCRIPT: ScriptText = {
    "prog": "networks/extract_lora_from_dylora.py",
    "description": "Cut a DyLoRA into LoRA files of all the ranks that it was trained for.",
    "example": "python networks/extract_lora_from_dylora.py --model my_dylora.safetensors --save_to cut.safetensors "
    "--unit 4",
    "ignored": {},
}
