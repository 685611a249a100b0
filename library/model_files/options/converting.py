"""Options of the script that converts whole models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.device import PRECISIONS
from library.model_files.options.metadata_text import metadata_problem
from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt

FILE_ENDINGS = (".safetensors", ".ckpt")
_ENDING = re.compile(r"\.[A-Za-z]\w*")  # of a file; "model-v1.5" is a folder


def is_file_name(path: Path) -> bool:
    """Whether a model that is written there is one file, and not a folder."""
    return path.suffix.lower() in FILE_ENDINGS


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(OptionGroup):
    """Which model, and what it becomes."""

    title: ClassVar[str] = "Conversion"

    model_to_load: Path | None = opt(
        None, "Model to read: a .safetensors or .ckpt file, or a diffusers folder. It is not changed.", positional=True
    )
    model_to_save: Path | None = opt(
        None,
        "Model to write: a name that ends in .safetensors or .ckpt is one file, another one a diffusers folder.",
        positional=True,
    )
    v1: bool = opt(False, "The model is Stable Diffusion 1.x. Not needed: its file says so, and is checked against it.")
    v2: bool = opt(False, "The model is Stable Diffusion 2.x. Not needed, likewise.")
    unet_use_linear_projection: bool = opt(
        False,
        "Say in the folder of a Stable Diffusion 2.x model that its projections are linear.",
        no_effect="the shapes of the weights say it, and the folder with them",
    )
    fp16: bool = opt(False, "Write all weights as fp16.")
    bf16: bool = opt(False, "Write all weights as bf16.")
    float: bool = opt(False, "Write all weights as float32.")
    save_precision_as: str = opt(
        "no", "Write all weights in this precision; no keeps what each weight has.", choices=PRECISIONS
    )
    epoch: int = opt(0, "Epoch that a .ckpt file says it was trained to.", minimum=0)
    global_step: int = opt(0, "Step that a .ckpt file says it was trained to.", minimum=0)
    metadata: str | None = opt(
        None,
        'What the header of a .safetensors file says in addition: JSON, as in {"modelspec.title": "My model"}, or '
        "KEY=VALUE,KEY=VALUE. It is read as text, never run.",
    )
    variant: str | None = opt(
        None, "Form of the weights in folders: fp16 reads and writes files named NAME.fp16.safetensors."
    )
    reference_model: str | None = opt(
        None, "Diffusers folder on this machine whose scheduler and tokenizers a written folder gets."
    )
    use_safetensors: bool = opt(
        False, "Write folders in safetensors.", no_effect="folders are always written in safetensors"
    )
    prediction_type: str | None = opt(
        None,
        "What the model predicts, for the header of a file or the scheduler of a folder. Not set: what the model says, "
        "of Stable Diffusion 2.x else what its weights look like.",
        choices=("epsilon", "v_prediction"),
    )
    zero_terminal_snr: bool = opt(
        False, "The model was trained down to pure noise. Not needed where it says so itself."
    )
    allow_pickle: bool = opt(False, "Also read .ckpt files that hold more than weights. Nothing in them is run.")

    @property
    def precision(self) -> str:
        """The one that is asked for; "no" where none is."""
        return next(iter(self._precisions().values()), "no")

    def _precisions(self) -> dict[str, str]:
        """{flag: precision} of those that are given."""
        given = {f"--{name}": name for name in PRECISIONS if getattr(self, name)}
        return given | ({"--save_precision_as": self.save_precision_as} if self.save_precision_as != "no" else {})

    def check(self) -> Iterator[str]:
        if len(set(self._precisions().values())) > 1:
            yield f"{' and '.join(self._precisions())} ask for different precisions. Keep one of them."
        if self.v1 and self.v2:
            yield "--v1 and --v2 exclude each other. Leave both out: the model says what it is."
        target = self.model_to_save
        if target is not None and not is_file_name(target) and _ENDING.fullmatch(target.suffix):
            yield (
                f"MODEL_TO_SAVE {target} ends in {target.suffix}. Give a name that ends in .safetensors or .ckpt for a "
                "file, or a name without an ending for a diffusers folder."
            )
        if self.metadata is not None and (problem := metadata_problem(self.metadata)):
            yield f"--metadata {problem}"
        if self.variant is not None and not re.fullmatch(r"\w+", self.variant):
            yield f"--variant {self.variant}: needs one word, as in fp16."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        target = self.model_to_save
        if target is None:
            return
        if target.suffix.lower() != ".ckpt":
            yield from ((name, "for .ckpt files") for name in ("epoch", "global_step"))
        if target.suffix.lower() != ".safetensors":
            yield "metadata", "only a .safetensors file has a place for it"
        if is_file_name(target):
            reason = "a file has no scheduler and no tokenizers"
            yield "reference_model", reason


@dataclass(frozen=True, kw_only=True)
class ConvertingOptions(CommonOptions):
    """Options of tools/convert_diffusers20_original_sd.py."""

    conversion: ConversionOptions = field(default_factory=ConversionOptions)

    leading: ClassVar[tuple[str, ...]] = ("conversion",)


CONVERTING_SCRIPT: ScriptText = {
    "prog": "tools/convert_diffusers20_original_sd.py",
    "description": "Convert a whole model between one file (.safetensors, .ckpt) and a diffusers folder. "
    "SD 1.x, SD 2.x, SDXL and SD3 / SD3.5.",
    "example": "python tools/convert_diffusers20_original_sd.py sd_xl_base_1.0.safetensors sdxl_folder "
    "--save_precision_as fp16",
    "ignored": {},
}
