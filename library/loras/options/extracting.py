"""Options of the script that makes a LoRA of the difference between two models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class DifferenceOptions(OptionGroup):
    """Which models, and what the LoRA is like."""

    title: ClassVar[str] = "Extracting"

    model_org: Path | None = opt(None, "The original model: a single file, or a diffusers folder.")
    model_tuned: Path | None = opt(None, "The tuned model of the same family, in either form.")
    save_to: Path | None = opt(None, "The LoRA to write, .safetensors, .ckpt, .pt or .pth.")
    v2: bool = opt(False, "The models are SD 2.x. They are recognised without it; other ones are refused with it.")
    sdxl: bool = opt(False, "The models are SDXL. They are recognised without it; other ones are refused with it.")
    v_parameterization: bool | None = opt(
        None,
        "Note in the file that the model predicts the velocity (SD 2.x of 768 pixels, some SDXL). Not set means what "
        "the original model says of itself.",
    )
    dim: int = opt(4, "Rank of linear layers, and of 1x1 convolutions.", minimum=1)
    conv_dim: int | None = opt(
        None,
        "Rank of other convolutions. With it the layers outside of attention get a LoRA too: residual blocks, or "
        "the embedders and the final layer of SD3.",
        minimum=1,
    )
    clamp_quantile: float = opt(
        0.99, "Cut the largest numbers of the factors down to this quantile of their sizes; 1 cuts none and is exact."
    )
    min_diff: float = opt(
        0.01, "Text encoders are left out if none of their weights differs by more than this.", minimum=0
    )
    load_precision: str | None = opt(
        None, "Round the weights of both models to this first. Not set means as they are stored.", choices=PRECISIONS
    )
    save_precision: str | None = opt(None, "Number format of the LoRA. Not set means float.", choices=PRECISIONS)
    device: str | None = opt(None, "Where it is computed, for instance cuda, which takes minutes less than a CPU.")
    load_original_model_to: str | None = opt(
        None, "Device to which weights of the original model are read, on their way to --device. Not set: the CPU."
    )
    load_tuned_model_to: str | None = opt(None, "The same for the tuned model.")
    no_metadata: bool = opt(False, "Write the least metadata only, without modelspec.")
    allow_pickle: bool = opt(
        False, "Read .ckpt models that ask for code too. None of it is run; only the weights are read."
    )
    verbose: bool = opt(False, "Show rank and retained norm of each module.")

    def check(self) -> Iterator[str]:
        if self.v2 and self.sdxl:
            yield "--v2 and --sdxl exclude each other. Leave both out: the files say what they are."
        if not 0 < self.clamp_quantile <= 1:
            yield f"--clamp_quantile must be above 0, at most 1, got {self.clamp_quantile}."


@dataclass(frozen=True, kw_only=True)
class ExtractLoraOptions(CommonOptions):
    """Options of networks/extract_lora_from_models.py."""

    difference: DifferenceOptions = field(default_factory=DifferenceOptions)

    leading: ClassVar[tuple[str, ...]] = ("difference",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("model_org", "model_tuned", "save_to")


EXTRACT_LORA_SCRIPT: ScriptText = {
    "prog": "networks/extract_lora_from_models.py",
    "description": "Make a LoRA of the difference between a tuned model and its original.",
    "example": "python networks/extract_lora_from_models.py --model_org base.safetensors --model_tuned "
    "tuned.safetensors --save_to difference.safetensors --dim 64 --clamp_quantile 1",
    "ignored": {},
}
