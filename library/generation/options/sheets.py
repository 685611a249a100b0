"""Options about sheets that compare pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class SheetOptions(OptionGroup):
    """Pictures side by side."""

    title: ClassVar[str] = "Sheets"

    xyz: tuple[str, ...] | None = opt(
        None,
        "Draw a picture for every crossing of one to three axes, and sheets of them: lora=0,0.5,1 (strength of "
        "networks), weights=a.safetensors,b.safetensors (networks), ckpt=..., seed=..., steps=..., scale=..., "
        "sampler=..., and prompt for all prompts. The first goes across, the second down, the third from sheet to "
        "sheet.",
        metavar="AXIS",
    )

    def compares(self, axis: str) -> bool:
        """Whether there is an axis of this name."""
        return any(text.partition("=")[0].strip().lower() == axis for text in self.xyz or ())
