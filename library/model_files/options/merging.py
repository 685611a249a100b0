"""Options of the script that merges whole models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class MergeOptions(OptionGroup):
    """Which models, and how they are merged."""

    title: ClassVar[str] = "Merging"

    models: tuple[str, ...] | None = opt(
        None, "Model files of one family, .safetensors or .ckpt. What another one lacks is taken from the first."
    )
    output: Path | None = opt(None, "File to write, .safetensors or .ckpt.")
    ratios: tuple[float, ...] | None = opt(
        None, "One number for each model, used as it is. Not set: equal ones that make 1 together."
    )
    unet_only: bool = opt(False, "Merge the denoiser (U-Net or MMDiT) only; all else is that of the first model.")
    device: str = opt("cpu", "Where it is computed, for instance cuda.")
    precision: str = opt("float", "Precision that it is computed in.", choices=PRECISIONS)
    saving_precision: str = opt("float", "Precision of the file.", choices=PRECISIONS)
    show_skipped: bool = opt(False, "Name every tensor that is not merged, and why.")
    add_difference: bool = opt(
        False, "With three models A, B and C and one ratio: A + ratio x (B - C), what B has learned since C put on A."
    )
    allow_pickle: bool = opt(False, "Also read .ckpt files that hold more than weights. Nothing in them is run.")

    @property
    def sources(self) -> tuple[Path, ...]:
        """The models as paths."""
        return tuple(Path(model) for model in self.models or ())

    @property
    def factors(self) -> tuple[float, ...]:
        """By what each model is multiplied; of a difference the one ratio."""
        if self.ratios is not None:
            return self.ratios
        return (1.0,) if self.add_difference else (1 / len(self.sources),) * len(self.sources)

    def check(self) -> Iterator[str]:
        number, given = len(self.sources), len(self.ratios or ())
        if self.models is not None and number < 2:
            yield f"--models has {number} model{'s' * (number != 1)}. Give at least two."
        elif self.models is not None and self.add_difference:
            if number != 3 or given > 1:
                yield (
                    f"--add_difference needs three models and at most one ratio, got {number} and {given}. "
                    "The result is the first + ratio x (the second - the third)."
                )
        elif self.models is not None and given and given != number:
            yield f"--ratios has {given} number{'s' * (given != 1)} for {number} models. Give one for each."
        if self.ratios is not None and not any(self.ratios):
            yield "--ratios are all 0, so nothing would be left of any model. Give other numbers."
        if self.output is not None and self.output.suffix.lower() not in (".safetensors", ".ckpt"):
            yield f"--output {self.output} must end in .safetensors or .ckpt."

    def remarks(self) -> Iterator[str]:
        total = sum(self.factors)
        if not self.add_difference and abs(total - 1) > 1e-6:
            yield f"--ratios make {total:g} together, not 1: they are used as given, so all weights grow or shrink."


@dataclass(frozen=True, kw_only=True)
class MergingOptions(CommonOptions):
    """Options of tools/merge_models.py."""

    merge: MergeOptions = field(default_factory=MergeOptions)

    leading: ClassVar[tuple[str, ...]] = ("merge",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("models", "output")


MERGING_SCRIPT: ScriptText = {
    "prog": "tools/merge_models.py",
    "description": "Merge whole models of one family: a weighted average, or one with the difference of two added.",
    "example": "python tools/merge_models.py --models a.safetensors b.safetensors --ratios 0.7 0.3 "
    "--output merged.safetensors --saving_precision fp16",
    "ignored": {},
}
