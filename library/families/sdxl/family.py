"""SDXL: two text encoders, and a U-Net that is told what of the picture it sees.

Source: Podell et al. 2023, arXiv:2307.01952; the published checkpoints and their reference inference code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from library.families.base import Conditioning
from library.families.unet.family import UnetFamily

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.families.sdxl.options import SdxlNetworkOptions
    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.text import LayerChoice
    from library.records import View


@dataclass(frozen=True, kw_only=True)
class SdxlFamily(UnetFamily):
    """SDXL as the options ask for it.

    Attributes:
        crop_compat: The U-Net is told the crop as sd-scripts tells it, and not the true one.
    """

    name: str = "sdxl"
    bucket_multiple: int = 32
    encoder_names: tuple[str, ...] = ("clip_l", "clip_g")
    sample_size: int = 1024
    kinds: tuple[str, ...] = ("sdxl",)
    crop_compat: bool = False

    @classmethod
    def from_options(cls, options: SdxlNetworkOptions) -> SdxlFamily:
        """The family as the command line asks for it."""
        from library.families.unet.settings import unet_settings

        return cls(**unet_settings(options), crop_compat=options.sdxl.sdxl_crop_compat)

    def text_layers(self) -> Mapping[str, LayerChoice]:
        """The last but one layer of both, without a norm; and the pooled vector of CLIP-G."""
        from library.families.unet.text import SDXL_LAYERS

        return SDXL_LAYERS

    def zero_padded(self, files: UnetFiles | None) -> tuple[str, ...]:
        """CLIP-G."""
        return ("clip_g",)

    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """CLIP-L and CLIP-G side by side; the pooled vector of CLIP-G."""
        from library.families.unet.text import join_sdxl

        return join_sdxl(states)

    def place(self, conditioning: Conditioning, views: Sequence[View]) -> Conditioning:
        """With original size, crop and size of each picture."""
        from library.device import send
        from library.families.sdxl.conditioning import compat_sizes, true_sizes

        sizes = compat_sizes(views) if self.crop_compat else true_sizes(views)
        return replace(conditioning, sizes=send(sizes, conditioning.context.device))

    def denoiser_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The pooled text and the sizes."""
        return {"added_cond_kwargs": {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}}

    def architecture(self, files: UnetFiles) -> str:
        """Name for modelspec.architecture."""
        return "stable-diffusion-xl-v1-base"

    def metadata(self, files: UnetFiles) -> dict[str, Any]:
        """The base model version, as other tools write it, and how crops are told."""
        return {"base_model_version": "sdxl_base_v1-0", "sdxl_crop_compat": self.crop_compat}
