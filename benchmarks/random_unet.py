"""A U-Net of random numbers, made on the device where it runs, and model families that give it in place of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.random_model import random_weights
from benchmarks.unet_sizes import UnetSize
from library.families.sd.family import SdFamily
from library.families.sdxl.family import SdxlFamily
from library.families.unet.checkpoint import UnetFiles
from library.families.unet.family import UnetFamily
from library.families.unet.quantized import quantize_unet
from library.models.unet import UNet
from library.models.unet_key_map import unet_from_diffusers
from networks.targets import ModelOutline


def random_unet(size: UnetSize, dtype: torch.dtype, device: torch.device) -> UNet:
    """A U-Net whose weights, of about unit gain, are drawn by a GPU if there is one; frozen, in evaluation mode."""
    model = outline(size)
    model.load_state_dict(random_weights(model, dtype, device), assign=True)
    model.requires_grad_(False).eval()
    return model


def outline(size: UnetSize) -> UNet:
    """Shapes only."""
    with torch.device("meta"):
        return UNet(**size.config())


class _Unfiled:
    """What a family does instead of reading files."""

    size: UnetSize
    weights_format: str | None

    def inspect(self) -> UnetFiles:
        """Nothing but the sizes."""
        nothing: Any = None
        return UnetFiles(self.size.kind, nothing, nothing, {}, self.size.config(), frozenset())

    def model_bytes(self, files: UnetFiles, **_: Any) -> int:
        """Nothing is saved."""
        return 0

    def check_places(self, files: UnetFiles, paths: Iterable[Path], *, layout: str) -> None:
        """Nothing is written."""

    def encoder_bytes(self, files: UnetFiles, name: str) -> int:
        """There is none."""
        return 0

    def network_model(self, files: UnetFiles) -> ModelOutline:
        """Every linear and convolution layer, as files of networks name them."""
        state = outline(self.size).state_dict()
        named = unet_from_diffusers(state) if files.kind == "sdxl" else state
        shapes = {name.removesuffix(".weight"): tuple(t.shape) for name, t in named.items() if t.ndim > 1}
        return ModelOutline(files.kind, shapes, 0)

    def load_denoiser(
        self,
        files: UnetFiles,
        dtype: torch.dtype,
        device: torch.device,
        change: Callable[[nn.Module], None] | None = None,
        *,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """Drawn where it runs, and then put into fewer bits where options ask for it."""
        model = random_unet(self.size, dtype, device)
        if change is not None:
            change(model)
        if self.weights_format is None:
            return model
        return quantize_unet(model, self.weights_format, dtype, device, rounds_on=rounds_on)


@dataclass(frozen=True, kw_only=True)
class RandomSdxl(_Unfiled, SdxlFamily):
    """SDXL without files: the U-Net is drawn, and there is neither a VAE nor a text encoder."""

    size: UnetSize


@dataclass(frozen=True, kw_only=True)
class RandomSd(_Unfiled, SdFamily):
    """The same for SD 1.x and 2.x."""

    size: UnetSize


def random_family(options: Any, size: UnetSize) -> UnetFamily:
    """The family as the options ask for it, for a model of this size."""
    base, drawn = (SdxlFamily, RandomSdxl) if size.kind == "sdxl" else (SdFamily, RandomSd)
    plain: Any = base.from_options(options)  # type: ignore[attr-defined]
    given = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    return drawn(**given, size=size)  # type: ignore[no-any-return]
