"""Options of the script that shows the weights of a LoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.spec import OptionGroup, ScriptText, opt


@dataclass(frozen=True, kw_only=True)
class LookOptions(OptionGroup):
    """Which file, and how much is shown."""

    title: ClassVar[str] = "Looking"

    file: Path | None = opt(None, "The LoRA, in the layout of kohya or diffusers.", positional=True)
    show_all_keys: bool = opt(
        False, "Show alpha and every other tensor too; otherwise the factors only.", aliases=("-s",)
    )


@dataclass(frozen=True, kw_only=True)
class CheckLoraOptions(CommonOptions):
    """Options of networks/check_lora_weights.py."""

    look: LookOptions = field(default_factory=LookOptions)

    leading: ClassVar[tuple[str, ...]] = ("look",)
    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ("file",)


CHECK_LORA_SCRIPT: ScriptText = {
    "prog": "networks/check_lora_weights.py",
    "description": "Show what a LoRA is, how strong it is in each block, and whether its numbers are sound.",
    "example": "python networks/check_lora_weights.py my_lora.safetensors",
    "ignored": {},
}
