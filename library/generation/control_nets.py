"""ControlNets that look at guiding pictures while a U-Net draws: attached from outside, in the first steps only if
that is asked for.

Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from library.errors import CheckpointError, OptionError
from library.families.base import ModelFamily
from library.models.control_net import ControlNetFile, open_control_net

if TYPE_CHECKING:
    from library.generation.options.extras import GuideOptions

OPTION = "--control_net_models"
_PIXELS = 8  # of a latent


class Clock:
    """How many predictions are made, of how many. Until the first is made, `count` is what is foreseen."""

    def __init__(self, count: int) -> None:
        self.done, self.count = 0, max(count, 1)

    def __call__(self, done: int, count: int) -> None:
        """After a step."""
        self.done, self.count = done, count

    def is_within(self, ratio: float) -> bool:
        """Whether the step that comes ends within this first share of the steps."""
        return ratio >= 1 or (self.done + 1) / self.count <= ratio


@dataclass(frozen=True)
class ControlSettings:
    """How one ControlNet, of either kind, is used.

    Attributes:
        prep: What is made of its picture, see `load_guide`.
        multiplier: Its strength.
        ratio: Share of the steps, the first ones, in which it acts.
    """

    prep: str = "none"
    multiplier: float = 1.0
    ratio: float = 1.0


@dataclass(frozen=True)
class ControlNet:
    """One that is loaded."""

    net: nn.Module
    settings: ControlSettings


def control_settings(guide: GuideOptions) -> list[ControlSettings]:
    """Of each ControlNet; a value that is given once counts for all."""
    number = guide.num_nets
    preps = _for_each(guide.control_net_preps, "none", number)
    multipliers = _for_each(guide.control_net_multipliers, 1.0, number)
    ratios = _for_each(guide.control_net_ratios, 1.0, number)
    return [ControlSettings(*values) for values in zip(preps, multipliers, ratios, strict=True)]


def open_control_nets(paths: Sequence[Path], family: ModelFamily, files: Any) -> list[ControlNetFile]:
    """Look at ControlNets, and see that they fit the model, before any weights are read.

    Raises:
        CheckpointError: One is missing, or for another model.
        OptionError: The family has no U-Net.
    """
    if not family.samplers:
        raise OptionError(f"{OPTION} is for Stable Diffusion 1.x, 2.x and SDXL. Leave it out.")
    layers = family.network_model(files).layers
    first = next(shape[0] for name, shape in layers.items() if name in ("conv_in", "input_blocks.0.0"))
    context = next(shape[1] for name, shape in layers.items() if name.endswith("attn2.to_k"))
    found = []
    for path in paths:
        file = open_control_net(path, OPTION)
        if file.widths != (first, context):
            raise CheckpointError(
                f"{OPTION}: {path} is for a model with texts of {file.widths[1]} numbers, and --ckpt has texts of "
                f"{context}. Give a ControlNet that was trained for this kind of model."
            )
        found.append(file)
    return found


@contextmanager
def controlling(
    unet: nn.Module, nets: Sequence[ControlNet], pictures: Sequence[Tensor], clock: Clock
) -> Iterator[None]:
    """ControlNets act while the context is open.

    Args:
        unet: Of diffusers.
        nets: The ControlNets.
        pictures: For each, in 0..1. Shape [B, 3, H, W]; the U-Net is called with B rows, or several times as many.
        clock: Says how far the drawing has come.
    """
    hook = partial(_add_residuals, list(zip(nets, pictures, strict=True)), clock)
    with unet.register_forward_pre_hook(hook, with_kwargs=True):
        yield


def _add_residuals(
    nets: list[tuple[ControlNet, Tensor]],
    clock: Clock,
    unet: nn.Module,
    inputs: tuple[Any, ...],
    named: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments of the U-Net with what the ControlNets say of them."""
    acting = [
        (net, picture) for net, picture in nets if clock.is_within(net.settings.ratio) and net.settings.multiplier
    ]
    if not acting:
        return None
    said = [_said(net, picture, inputs, named) for net, picture in acting]
    down = [sum(parts) for parts in zip(*(residuals for residuals, _ in said), strict=True)]
    middle = sum(own for _, own in said)
    return inputs, {**named, "down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _said(
    net: ControlNet, picture: Tensor, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Sequence[Tensor], Tensor]:
    latents, timesteps = inputs
    dtype = next(net.net.parameters()).dtype
    size = tuple(side * _PIXELS for side in latents.shape[-2:])
    if picture.shape[-2:] != size:  # of latents that grow
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
    rows = picture.repeat(len(latents) // len(picture), 1, 1, 1)
    config: Any = net.net.config
    down, middle = net.net(
        latents[:, : config.in_channels].to(dtype),  # without what models for parts of pictures are shown beside them
        timesteps,
        named["encoder_hidden_states"].to(dtype),
        rows.to(latents.device, dtype),
        conditioning_scale=net.settings.multiplier,
        added_cond_kwargs=named.get("added_cond_kwargs"),
        return_dict=False,
    )
    return down, middle


def _for_each(given: Sequence[Any] | None, default: Any, number: int) -> list[Any]:
    if not given:
        return [default] * number
    return list(given) * number if len(given) == 1 else list(given)
