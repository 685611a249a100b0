"""The layers of a U-Net and its text encoders, by their names in files.

LoRA files have published names for SDXL and those of diffusers for SD1 and SD2: these are known to all who read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from library.unet_names import to_diffusers, to_published
from networks.targets import ModelOutline, Slot, adapter_name
from networks.unet_blocks import LAYOUTS, BlockLayout

TITLES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
"""{family: as messages call it}"""
DENOISER = Slot("unet", "lora_unet", "U-Net")
_ONE_ENCODER = (Slot("textencoder", "lora_te", "CLIP"),)
_TWO_ENCODERS = (Slot("textencoder 1", "lora_te1", "CLIP-L"), Slot("textencoder 2", "lora_te2", "CLIP-G"))


@dataclass(frozen=True)
class UnetNames:
    """Names of the linear and convolution layers of a U-Net.

    Attributes:
        family: "sd1", "sd2" or "sdxl".
        published: {name as our files have it, but with dots: published name}, in the order of the model.
    """

    family: str
    published: Mapping[str, str]

    @classmethod
    def of_outline(cls, model: ModelOutline) -> UnetNames:
        """From names as files have them."""
        names = list(model.layers)
        return cls(
            model.family, dict(zip(names, names, strict=True)) if model.family == "sdxl" else to_published(names)
        )

    @classmethod
    def of_model(cls, family: str, names: Iterable[str]) -> UnetNames:
        """From the names that a model in memory has, which are those of diffusers."""
        published = to_published(names)
        if family != "sdxl":
            return cls(family, published)
        return cls(family, {name: name for name in published.values()})

    @property
    def title(self) -> str:
        """The family as messages call it."""
        return TITLES[self.family]

    @property
    def layout(self) -> BlockLayout:
        """How arguments count its blocks."""
        return LAYOUTS[self.family]

    @property
    def encoders(self) -> tuple[Slot, ...]:
        """Its text encoders."""
        return _TWO_ENCODERS if self.family == "sdxl" else _ONE_ENCODER

    @cached_property
    def aliases(self) -> dict[str, str]:
        """{name of an adapter in files with the other layout: in ours}"""
        others = to_diffusers(self.published) if self.family == "sdxl" else self.published
        pairs = {other: own for own, other in others.items()}
        return {
            adapter_name(DENOISER.prefix, other): adapter_name(DENOISER.prefix, own) for other, own in pairs.items()
        }
