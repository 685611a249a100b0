"""An MMDiT of random numbers, made on the device where it runs, and a model family that gives it in place of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory_table import MODELS
from benchmarks.step_memory import CLIP_TOKENS, T5_TOKENS
from library.device import choose_device
from library.families.sd3.checkpoint import Sd3Files
from library.families.sd3.family import Sd3Family
from library.families.sd3.quantized_mmdit import quantize_mmdit
from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.positions import sincos_table

_NATIVE_SIDE = 64


@dataclass(frozen=True)
class Sizes:
    """Widths of what is measured.

    Attributes:
        models: By name.
        clip_l: Width of CLIP-L's states, which with CLIP-G's gives the width of the pooled vectors.
        t5_tokens: Length of T5's states.
        shrink: What sides of pictures are divided by.
    """

    models: Mapping[str, MMDiTConfig]
    clip_l: int = 768
    t5_tokens: int = T5_TOKENS
    shrink: int = 1

    @property
    def num_text(self) -> int:
        """Tokens of the text."""
        return CLIP_TOKENS + self.t5_tokens

    def text_states(self, config: MMDiTConfig, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random states of all encoders, as a cache gives them. On the CPU."""
        widths = {"clip_l": self.clip_l, "clip_g": config.pooled_dim - self.clip_l}
        states = {name: torch.randn(batch, CLIP_TOKENS, width) for name, width in widths.items()}
        states |= {f"{name}_pooled": torch.randn(batch, width) for name, width in widths.items()}
        states["t5xxl"] = torch.randn(batch, self.t5_tokens, config.context_dim)
        return {name: state.to(dtype) for name, state in states.items()}


def _tiny(config: MMDiTConfig) -> MMDiTConfig:
    """The same kinds of blocks, few of them and narrow."""
    dual = tuple(range(2)) if config.dual_attention else ()
    return replace(
        config, depth=4, num_heads=2, context_dim=64, pooled_dim=48, position_side=16, dual_attention=dual, head_dim=64
    )


SIZES = {
    "true": Sizes(MODELS),
    "tiny": Sizes({name: _tiny(config) for name, config in MODELS.items()}, clip_l=16, t5_tokens=16, shrink=8),
}


def random_mmdit(config: MMDiTConfig, dtype: torch.dtype, device: torch.device) -> MMDiT:
    """An MMDiT whose weights, of about unit gain, are drawn by a GPU if there is one; frozen, in evaluation mode.

    Args:
        config: Sizes.
        dtype: Of the weights; the table of positions is in fp16 as in the published files.
        device: Where the weights go; the table of positions stays on the host, where the trainer has it.
    """
    with torch.device("meta"):
        model = MMDiT(config)
    state = random_weights(model, dtype, device)
    model.load_state_dict({**state, "pos_embed": position_table(config)}, assign=True)
    return model.requires_grad_(False).eval()


def random_weights(model: nn.Module, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """{name: numbers in place of a parameter}, drawn by a GPU if there is one."""
    place = choose_device() if device.type == "cpu" else device
    generator = torch.Generator(place).manual_seed(0)
    return {
        name: _drawn(name, parameter.shape, dtype, generator).to(device) for name, parameter in model.named_parameters()
    }


def _drawn(name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Matrices at random, biases 0, weights of norms 1."""
    tensor = torch.empty(shape, dtype=dtype, device=generator.device)
    if len(shape) > 1:
        return tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
    return tensor.fill_(0.0 if name.endswith("bias") else 1.0)


@lru_cache(maxsize=4)
def position_table(config: MMDiTConfig) -> Tensor:
    """On the host, in fp16. Nobody may write to it."""
    return sincos_table(config.hidden, config.position_side, min(config.position_side, _NATIVE_SIDE)).half()


@dataclass(frozen=True, kw_only=True)
class RandomFamily(Sd3Family):
    """SD3 without files: the MMDiT is drawn, and there is neither a VAE nor a text encoder."""

    config: MMDiTConfig

    @classmethod
    def of(cls, options: Any, config: MMDiTConfig) -> RandomFamily:
        """The family as the options ask for it, for a model of these sizes."""
        plain = Sd3Family.from_options(options)
        return cls(**{name: getattr(plain, name) for name in plain.__dataclass_fields__}, config=config)

    def inspect(self) -> Sd3Files:
        """Nothing but the sizes."""
        nothing: Any = None
        variant = ("5-medium" if self.config.dual_attention else "5-large") if self.config.qk_norm else "medium"
        return Sd3Files(nothing, None, None, None, None, config=self.config, variant=variant)

    def model_bytes(self, files: Sd3Files, **_: Any) -> int:
        """Nothing is saved."""
        return 0

    def load_denoiser(
        self,
        files: Sd3Files,
        dtype: torch.dtype,
        device: torch.device,
        change: Callable[[nn.Module], None] | None = None,
        *,
        rounds_on: torch.device | None = None,
    ) -> nn.Module:
        """Drawn where it runs, and then put into fewer bits where options ask for it."""
        model = random_mmdit(files.config, dtype, device)
        if change is not None:
            change(model)
        if self.weights_format is None:
            return model
        return quantize_mmdit(model, self.weights_format, dtype, device, rounds_on=rounds_on)
