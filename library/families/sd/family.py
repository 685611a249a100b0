"""Stable Diffusion 1.x and 2.x: one text encoder.

Sources: Rombach et al. 2022, arXiv:2112.10752; the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from library.errors import CheckpointError
from library.families.base import Conditioning
from library.families.unet.family import UnetFamily

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPTextModelWithProjection

    from library.families.sd.options import SdNetworkOptions
    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.text import LayerChoice


@dataclass(frozen=True, kw_only=True)
class SdFamily(UnetFamily):
    """SD 1.x or 2.x as the options ask for it.

    Attributes:
        is_v2: `--v2` is given. Which of both a model is, its file tells.
        clip_skip: Which of the last layers of the text encoder is read; None for the last.
    """

    name: str = "sd"
    bucket_multiple: int = 64
    encoder_names: tuple[str, ...] = ("clip",)
    sample_size: int = 512
    kinds: tuple[str, ...] = ("sd1", "sd2")
    is_v2: bool = False
    clip_skip: int | None = None

    @classmethod
    def from_options(cls, options: SdNetworkOptions) -> SdFamily:
        """The family as the command line asks for it."""
        from library.families.unet.settings import unet_settings

        return cls(**unet_settings(options), is_v2=options.model.v2, clip_skip=options.model.clip_skip)

    def inspect(self) -> UnetFiles:
        """Also: `--v2` says what the file says.

        Raises:
            CheckpointError: It does not; and see `UnetFamily.inspect`.
            OptionError: The text encoder has fewer layers than `--clip_skip` says.
        """
        import torch

        from library.families.unet.text import check_clip_skip

        files = super().inspect()
        self.refuse_kind(files.kind)
        encoder = cast("CLIPTextModelWithProjection", self.encoder_outline(files, "clip", torch.float32))
        check_clip_skip(self.clip_skip, encoder.config.num_hidden_layers)
        return files

    def refuse_kind(self, kind: str) -> None:
        """`--v2` for a model that is none."""
        if self.is_v2 and kind == "sd1":
            raise CheckpointError(f"--v2: {self.pretrained} is a Stable Diffusion 1.x model. Leave --v2 out.")

    def text_layers(self) -> Mapping[str, LayerChoice]:
        """The last layer, or the one that `--clip_skip` says, with the final norm."""
        from library.families.unet.text import sd_layers

        return sd_layers(self.clip_skip)

    def zero_padded(self, files: UnetFiles | None) -> tuple[str, ...]:
        """The encoder of SD 2.x. Without a file, `--v2` says which it is."""
        is_v2 = self.is_v2 if files is None else files.kind == "sd2"
        return self.encoder_names if is_v2 else ()

    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """The states as they are."""
        from library.families.unet.text import join_sd

        return join_sd(states)

    def architecture(self, files: UnetFiles) -> str:
        """Name for modelspec.architecture."""
        if files.kind == "sd1":
            return "stable-diffusion-v1"
        return "stable-diffusion-v2-768-v" if self.is_velocity else "stable-diffusion-v2-512"

    def metadata(self, files: UnetFiles) -> dict[str, Any]:
        """The base model version, as other tools write it."""
        version = "sd_v1" if files.kind == "sd1" else "sd_v2"
        return {"base_model_version": f"{version}_v" if self.is_velocity else version, "v2": files.kind == "sd2"}
