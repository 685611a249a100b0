"""ControlNet-LLLite for one layer: the layer's input is changed by what a picture shows at the same place.

To the input x is added up(mid(embedding of the picture beside down(x))). It is nothing at first, as `up` is zero.

Source: the sd-scripts project's description of ControlNet-LLLite; the file layout is the one that ComfyUI reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from networks.control_net_lllite_targets import Widths, convolutions, module_shapes
from networks.layer_adapter import LayerAdapter
from networks.lora_linear import compute_dtype


class LLLiteAdapter(LayerAdapter):
    """What a conditioning picture adds to one linear layer's input.

    Args:
        name: Name in a file, for instance lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.
        target: An nn.Linear over tokens [B, h * w, C].
        level: Of the U-Net, from 1: how much smaller than the picture h and w are.
        widths: Of the module.
        multiplier: Strength; 0 is the layer without it.
        dropout: Chance of dropping a value before `up`, while training.

    The weights hold no values until `reset` or `load` is called.
    """

    def __init__(
        self,
        name: str,
        target: nn.Module,
        level: int,
        widths: Widths,
        *,
        multiplier: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(name, target, widths.inner, float(widths.inner), multiplier=multiplier)
        self.level, self.widths, self.dropout = level, widths, dropout
        inputs = int(target.in_features)  # type: ignore[arg-type]
        layers: list[nn.Module] = []
        for before, after, side in convolutions(level, widths):
            layers += [nn.Conv2d(before, after, side, stride=side), nn.ReLU()]
        self.conditioning1 = nn.Sequential(*layers[:-1])
        self.down = nn.Sequential(nn.Linear(inputs, widths.inner), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(widths.inner + widths.condition, widths.inner), nn.ReLU())
        self.up = nn.Sequential(nn.Linear(widths.inner, inputs))
        self.assumes_condition = False
        self._images: Tensor | None = None
        self._embedding: Tensor | None = None

    @torch.no_grad()
    def reset(self, generator: Generator | None = None) -> None:
        """Start values: as nn.Linear and nn.Conv2d have them; `up` is zero, so that nothing is added yet."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                bound = layer.weight[0].numel() ** -0.5
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)  # type: ignore[union-attr]
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def saved(self) -> dict[str, Tensor]:
        """See `LayerAdapter`."""
        state = self.state_dict()
        inputs = int(self.target.in_features)  # type: ignore[arg-type]
        return {end: state[end[1:]].detach() for end in module_shapes(self.level, inputs, self.widths)}

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Take over {end of the key: tensor} of a file that was checked."""
        for name, parameter in self.named_parameters():
            parameter.copy_(values[f".{name}"])

    def set_condition(self, images: Tensor | None) -> None:
        """What the next passes are conditioned with. Shape [B, 3, H, W] in -1..1; None for nothing."""
        self._images, self._embedding = images, None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for the changed input. x has shape [B, h * w, C]."""
        images = self._assumed(x) if self.assumes_condition and self._images is None else self._images
        if not self.enabled or self.multiplier == 0 or images is None:
            return self.base_forward(x, *args, **kwargs)
        dtype = compute_dtype(x)
        condition = _fitting(self._embed(images, dtype), x, images.shape[-2:])  # [B, h * w, condition]
        inner = F.relu(_linear(self.down[0], x.to(dtype)))
        inner = F.relu(_linear(self.mid[0], torch.cat([condition, inner], dim=-1)))  # [B, h * w, inner]
        if self.training and self.dropout:
            inner = F.dropout(inner, self.dropout)
        added = _linear(self.up[0], inner) * self.multiplier
        return self.base_forward(x + added.to(x.dtype), *args, **kwargs)

    def _embed(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """The picture's embedding [B, condition, h, w]. Where no gradient is wanted it is computed once."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._convolved(images.to(dtype))
        if self._embedding is None or self._embedding.dtype != dtype:
            self._embedding = self._convolved(images.to(dtype))
        return self._embedding

    def _assumed(self, x: Tensor) -> Tensor:
        """A picture for each row of x, without meaning; as square as it can be."""
        rows, columns = _grid(1, 1, x.shape[1])
        return x.new_zeros(x.shape[0], 3, rows * self._stride, columns * self._stride)

    @property
    def _stride(self) -> int:
        """Pixels of the picture for a token, along each side."""
        return math.prod(side for _, _, side in convolutions(self.level, self.widths))

    def _convolved(self, x: Tensor) -> Tensor:
        """The embedding has the U-Net's sizes, which are rounded up: sides are filled up to whole tokens."""
        right, below = -x.shape[-1] % self._stride, -x.shape[-2] % self._stride
        if right or below:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        for layer in self.conditioning1:
            if isinstance(layer, nn.Conv2d):
                x = F.conv2d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.stride)  # type: ignore[union-attr, arg-type]
            else:
                x = layer(x)
        return x


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _fitting(embedding: Tensor, x: Tensor, picture: Sequence[int]) -> Tensor:
    """The embedding [b, C, h, w] of a picture [height, width] as tokens for x [B, N, _].

    With guidance the rows of x are those of b, several times; where the picture does not have the latents' size it is
    stretched over them.
    """
    if math.prod(embedding.shape[-2:]) != x.shape[1]:
        grid = _grid(picture[0], picture[1], x.shape[1])
        embedding = F.interpolate(embedding, grid, mode="bilinear", antialias=False)
    if x.shape[0] % embedding.shape[0]:
        raise ValueError(f"{embedding.shape[0]} conditioning pictures cannot be for {x.shape[0]} rows")
    repeated = embedding.repeat(x.shape[0] // embedding.shape[0], 1, 1, 1)
    return rearrange(repeated, "b c h w -> b (h w) c")


def _grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of so many tokens, in the shape nearest to height x width."""
    wanted = math.sqrt(tokens * height / width)
    rows = min((n for n in range(1, tokens + 1) if tokens % n == 0), key=lambda n: abs(n - wanted))
    return rows, tokens // rows
