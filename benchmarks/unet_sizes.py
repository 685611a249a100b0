"""Sizes of the published models around a U-Net, and of narrow ones with the same kinds of blocks.

Source: the configurations of Stable Diffusion 1.5, 2.1 and XL as diffusers publishes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DOWN, _CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
NUM_SIZES = 6  # numbers that SDXL is told of a picture


@dataclass(frozen=True)
class UnetSize:
    """A U-Net.

    Attributes:
        kind: "sd1", "sd2" or "sdxl".
        widths: Channels of each level.
        depths: Transformer blocks of each attention, by level; 0 for a level without.
        context: Width of the token states.
        heads: Of each level, or of all.
        pooled: Width of the pooled text; 0 where the U-Net is told nothing beside the text.
        size_width: Of the embedding of each number that SDXL is told.
    """

    kind: str
    widths: Sequence[int]
    depths: Sequence[int]
    context: int
    heads: int | Sequence[int]
    pooled: int = 0
    size_width: int = 256

    def config(self) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel."""
        types = [_CROSS if depth else _DOWN for depth in self.depths]
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.size_width,
            "projection_class_embeddings_input_dim": self.pooled + NUM_SIZES * self.size_width,
        }
        depths = [max(1, depth) for depth in self.depths]
        return {
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": types,
            "up_block_types": [name.replace("Down", "Up") for name in reversed(types)],
            "block_out_channels": list(self.widths),
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "cross_attention_dim": self.context,
            "transformer_layers_per_block": depths,
            "attention_head_dim": self.heads if isinstance(self.heads, int) else list(self.heads),
            "use_linear_projection": self.kind != "sd1",
            **(added if self.pooled else {}),
        }


UNETS: Mapping[str, UnetSize] = {
    "SDXL": UnetSize("sdxl", (320, 640, 1280), (0, 2, 10), 2048, (5, 10, 20), pooled=1280),
    "SD1.5": UnetSize("sd1", (320, 640, 1280, 1280), (1, 1, 1, 0), 768, 8),
    "SD2.1": UnetSize("sd2", (320, 640, 1280, 1280), (1, 1, 1, 0), 1024, (5, 10, 20, 20)),
}
TINY_UNETS: Mapping[str, UnetSize] = {
    "SDXL": UnetSize("sdxl", (32, 64, 64), (0, 1, 2), 80, (2, 1, 1), pooled=48, size_width=32),
    "SD1.5": UnetSize("sd1", (32, 64, 64, 64), (1, 1, 1, 0), 32, 8),
    "SD2.1": UnetSize("sd2", (32, 64, 64, 64), (1, 1, 1, 0), 32, (2, 1, 1, 1)),
}
MID_UNET = UnetSize("sdxl", (128, 256, 512), (0, 2, 4), 768, (2, 4, 8), pooled=256)
SIZES: Mapping[str, Mapping[str, UnetSize]] = {"true": UNETS, "tiny": TINY_UNETS}
