"""Deep shrink: a U-Net whose features are smaller in its middle while there is much noise.

So it composes a large picture as one of the size that it was trained at. Before a block on the way down features are
shrunk; on the way up they are brought back to the size of the skip they meet. Attached from outside by hooks.

Source: Kohya S. 2023, "Deep Shrink: Generate high-resolution images" (also known as Kohya's high-resolution fix).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DeepShrink:
    """Where and when features are shrunk.

    Attributes:
        depth_1: Number of the block before which that happens, as in published files: 0 is the first convolution, and
            not possible, then come two residual blocks and one change of size of each level.
        timesteps_1: There down to this timestep.
        depth_2: Another block, below `timesteps_1`; None for none.
        timesteps_2: There down to this timestep.
        ratio: Of sides, to what they were.
    """

    depth_1: int
    timesteps_1: int = 650
    depth_2: int | None = None
    timesteps_2: int = 650
    ratio: float = 0.5

    def depth_at(self, timestep: float) -> int | None:
        """The block at a timestep; None where nothing is shrunk."""
        if timestep >= self.timesteps_1:
            return self.depth_1
        return self.depth_2 if timestep >= self.timesteps_2 else None


class _Pass:
    """One pass of the U-Net: where it shrinks, and the sizes of skips that were not met yet."""

    depth: int | None = None

    def __init__(self) -> None:
        self.skips: list[tuple[int, int]] = []


@contextmanager
def shrinking(unet: nn.Module, settings: DeepShrink) -> Iterator[None]:
    """Deep shrink while the context is open.

    Raises:
        ValueError: The U-Net has no block of such a number.
    """
    own = _Pass()
    blocks = input_blocks(unet)
    for depth in (settings.depth_1, settings.depth_2):
        if depth is not None and not 1 <= depth < len(blocks):
            raise ValueError(f"there are blocks 1 to {len(blocks) - 1}, got {depth}")

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        own.depth = settings.depth_at(float(inputs[1].flatten()[0]))
        own.skips = []

    with ExitStack() as hooks:
        hooks.enter_context(unet.register_forward_pre_hook(begin))
        for number, (first, last) in enumerate(blocks):
            hooks.enter_context(first.register_forward_pre_hook(partial(_shrink, own, number, settings.ratio)))
            hooks.enter_context(last.register_forward_hook(partial(_remember, own)))
        for block in before_skips(unet):
            hooks.enter_context(block.register_forward_hook(partial(_meet_skip, own)))
        yield


def input_blocks(unet: Any) -> list[tuple[nn.Module, nn.Module]]:
    """The first and the last module of each block on the way down, in the order of published files."""
    blocks = [(unet.conv_in, unet.conv_in)]
    for level in unet.down_blocks:
        attentions = list(getattr(level, "attentions", None) or [])
        blocks += list(zip(level.resnets, attentions or level.resnets, strict=True))
        blocks += [(one, one) for one in level.downsamplers or ()]
    return blocks


def before_skips(unet: Any) -> list[nn.Module]:
    """The modules whose output meets a skip next, in the order in which they compute."""
    found: list[nn.Module] = [unet.mid_block]
    for level in unet.up_blocks:
        attentions = list(getattr(level, "attentions", None) or [])
        found += list(attentions or level.resnets)[:-1]
        found += list(level.upsamplers or ())
    return found


def _shrink(own: _Pass, number: int, ratio: float, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if own.depth != number or ratio == 1:
        return None
    features, *others = inputs
    height, width = (max(1, round(side * ratio)) for side in features.shape[-2:])
    return (_resized(features, (height, width)), *others)


def _remember(own: _Pass, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
    height, width = _features(output).shape[-2:]
    own.skips.append((height, width))


def _meet_skip(own: _Pass, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    """What comes up, in the size of the next skip."""
    size = own.skips.pop()
    features = _features(output)
    if own.depth is None or features.shape[-2:] == size:
        return None
    resized = _resized(features, size)
    return (resized, *output[1:]) if isinstance(output, tuple) else resized


def _features(output: Any) -> Tensor:
    """Attentions give a tuple of one."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


def _resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, in float32. Shape [B, C, *size]."""
    return F.interpolate(features.float(), size, mode="bicubic", align_corners=False).to(features.dtype)
