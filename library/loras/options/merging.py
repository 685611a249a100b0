"""Options of the scripts that merge LoRAs: into a model, or with each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.errors import OptionError
from library.loras.block_weights import PRESETS, parse_weights
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class MergeInputOptions(OptionGroup):
    """Which files, how strong, and what is written."""

    title: ClassVar[str] = "Merging"

    models: tuple[Path, ...] | None = opt(None, "LoRA files, of any layout; they stay as they are.")
    ratios: tuple[float, ...] | None = opt(
        None, "Strength of each file, in the same order. A negative one takes away what the LoRA adds."
    )
    lbws: tuple[str, ...] | None = opt(
        None,
        "Weights of the blocks for each file, in the same order: a list as [1,0,0.5,...] or 1,0,0.5,...; or a name "
        f"({', '.join(PRESETS)}). SD1 and SD2: 17 or 26 numbers; SDXL: 12 or 20; SD3: one for each block, or two more.",
    )
    save_to: Path | None = opt(
        None,
        "The file to write: .safetensors, .ckpt, .pt or .pth. A LoRA is written in the layout of kohya, or in that of "
        "diffusers if all --models are in it.",
    )
    save_precision: str | None = opt(
        None,
        "Number format of the file to write. Not set means that of each tensor in what is read; "
        "a LoRA in fp8 becomes fp16.",
        choices=PRECISIONS,
    )
    precision: str = opt(
        "float", "Number format of the computation; float is exact enough to stay.", choices=PRECISIONS
    )
    no_metadata: bool = opt(False, "Write no metadata.")

    @property
    def block_weights(self) -> tuple[tuple[float, ...] | None, ...]:
        """Of each file; None where all blocks have 1."""
        return tuple(parse_weights(text) for text in self.lbws) if self.lbws else (None,) * len(self.models or ())

    def check(self) -> Iterator[str]:
        count, ratios = len(self.models or ()), self.ratios or ()
        if count and not ratios:
            example = " ".join(["1.0"] * count)
            yield f"--ratios is missing: the strength of each file of --models, for instance --ratios {example}."
        elif count and len(ratios) != count:
            yield (
                f"--ratios has {len(ratios)} number{'s' * (len(ratios) != 1)} for {count} "
                f"file{'s' * (count != 1)} of --models. Give one for each file, in the same order, for instance "
                f"--ratios {' '.join(['1.0'] * count)}."
            )
        elif not all(math.isfinite(ratio) for ratio in ratios):
            yield "--ratios needs finite numbers."
        elif count and not any(ratios):
            yield "--ratios are all 0, so nothing would be merged. Give another number for a file at least."
        if self.lbws and len(self.lbws) != count:
            yield (
                f"--lbws has {len(self.lbws)} list{'s' * (len(self.lbws) != 1)} for {count} "
                f"file{'s' * (count != 1)} of --models. Give one for each; ALL is 1 for all blocks."
            )
        try:
            self.block_weights  # noqa: B018
        except OptionError as error:
            yield str(error)


@dataclass(frozen=True, kw_only=True)
class MergeOptions(MergeInputOptions):
    """What the scripts have that merge into a model or with each other."""

    sd_model: Path | None = opt(
        None, "The model to merge into, a single file. Without it the LoRAs are merged with each other."
    )
    concat: bool = opt(
        False,
        "Without --sd_model: the exact sum, whose rank is the sum of all ranks. Otherwise the result has the rank of "
        "the largest file and comes as near as it can.",
    )
    shuffle: bool = opt(
        False,
        "Without --sd_model: put the ranks of each module into another order. What the file does is the same.",
    )
    skip_text_encoders: bool = opt(
        False, "With --sd_model: leave out what a LoRA does to text encoders, for models without them."
    )
    allow_pickle: bool = opt(
        False, "Also read a .ckpt as --sd_model that asks for more than weights do; nothing of it is run."
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.sd_model is not None:
            for name in ("concat", "shuffle"):
                yield name, "it is for LoRAs that are merged with each other, without --sd_model"
        else:
            for name in ("skip_text_encoders", "allow_pickle"):
                yield name, "it is for --sd_model"


@dataclass(frozen=True, kw_only=True)
class AnyMergeOptions(MergeOptions):
    """What networks/merge_lora.py has beside them."""

    v2: bool = opt(False, "The model is SD2.", no_effect="the files say whether they are SD2")


@dataclass(frozen=True, kw_only=True)
class SvdOptions(MergeInputOptions):
    """To which ranks LoRAs are merged."""

    new_rank: int = opt(
        4, "Rank of the result, and its alpha. No module gets more than the ranks that go in.", minimum=1
    )
    new_conv_rank: int | None = opt(
        None, "The same for convolutions larger than 1x1. Not set means --new_rank.", minimum=1
    )
    device: str | None = opt(None, "Where it is computed, for instance cuda. Not set means the CPU, which is fast too.")
    clamp_quantile: float | None = opt(
        None,
        "Cut numbers of the singular vectors at this quantile of their sizes, as some scripts do with 0.99. The result "
        "is not as near as it could be then.",
        above=0,
        maximum=1,
    )


_REQUIRED: tuple[str | tuple[str, ...], ...] = ("models", "save_to")


@dataclass(frozen=True, kw_only=True)
class MergeLoraOptions(CommonOptions):
    """Options of networks/merge_lora.py."""

    merge: AnyMergeOptions = field(default_factory=AnyMergeOptions)

    leading: ClassVar[tuple[str, ...]] = ("merge",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = _REQUIRED


@dataclass(frozen=True, kw_only=True)
class FamilyMergeLoraOptions(CommonOptions):
    """Options of networks/sdxl_merge_lora.py and networks/sd3_merge_lora.py."""

    merge: MergeOptions = field(default_factory=MergeOptions)

    leading: ClassVar[tuple[str, ...]] = ("merge",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = _REQUIRED


@dataclass(frozen=True, kw_only=True)
class SvdMergeLoraOptions(CommonOptions):
    """Options of networks/svd_merge_lora.py."""

    merge: SvdOptions = field(default_factory=SvdOptions)

    leading: ClassVar[tuple[str, ...]] = ("merge",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = _REQUIRED


MERGE_LORA_SCRIPT: ScriptText = {
    "prog": "networks/merge_lora.py",
    "description": "Merge LoRAs into a model, or with each other. The files say of which family they are.",
    "example": "python networks/merge_lora.py --sd_model v1-5-pruned-emaonly.safetensors --models my_lora.safetensors "
    "--ratios 0.8 --save_to merged.safetensors",
    "ignored": {},
}
SDXL_MERGE_LORA_SCRIPT: ScriptText = {
    "prog": "networks/sdxl_merge_lora.py",
    "description": "Merge LoRAs into an SDXL model, or with each other.",
    "example": "python networks/sdxl_merge_lora.py --sd_model sd_xl_base_1.0.safetensors --models my_lora.safetensors "
    "--ratios 0.8 --save_to merged.safetensors",
    "ignored": {},
}
SD3_MERGE_LORA_SCRIPT: ScriptText = {
    "prog": "networks/sd3_merge_lora.py",
    "description": "Merge LoRAs into an SD3 or SD3.5 model, or with each other.",
    "example": "python networks/sd3_merge_lora.py --sd_model sd3.5_medium.safetensors --models my_lora.safetensors "
    "--ratios 0.8 --save_to merged.safetensors",
    "ignored": {},
}
SVD_MERGE_LORA_SCRIPT: ScriptText = {
    "prog": "networks/svd_merge_lora.py",
    "description": "Merge LoRAs with each other to a LoRA of another rank, as near to their sum as that rank allows.",
    "example": "python networks/svd_merge_lora.py --models style.safetensors subject.safetensors --ratios 0.6 1.0 "
    "--new_rank 16 --save_to both.safetensors",
    "ignored": {},
}
