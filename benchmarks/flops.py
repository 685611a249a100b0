"""Model FLOPs of a training step of an MMDiT, counted from its sizes: what the mathematics asks for, on any machine.

- A linear layer with n rows, k inputs and m outputs takes 2 n k m in the forward pass; as much again in the backward
  pass for the gradient of its input, where anything before it trains; and as much again for that of its weight, where
  the weight trains. A frozen layer thus costs 2 forward passes in all, a trained one 3.
- A LoRA of rank r beside it takes 2 n r (k + m), and in the backward pass twice that, or a little less where the input
  needs no gradient.
- Attention of N tokens over heads of together D channels takes 4 N N D forward (scores, and their product with the
  values) and 8 N N D backward.
- Not counted: what is computed again (gradient checkpointing, and the scores in the backward pass of fused attention
  kernels), and all that is not a product of matrices (norms, GELU, softmax, additions, the optimizer).

So a step with checkpointing has as many model FLOPs as one without, and a lower utilisation.

    python -m benchmarks.flops

prints the count for one picture of each model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import nn

from benchmarks.memory_table import MODELS
from benchmarks.step_memory import CLIP_TOKENS, PIXELS_PER_CELL, T5_TOKENS
from library.models.mmdit import MMDiT, MMDiTConfig
from networks.sd3_args import Sd3NetworkArgs
from networks.sd3_targets import denoiser_rules
from networks.targets import plan_modules

NUM_TOKENS = CLIP_TOKENS + T5_TOKENS
ATTENTION_ALONE = Sd3NetworkArgs(context_mlp_dim=0, context_mod_dim=0, x_mlp_dim=0, x_mod_dim=0)
EVERY_LINEAR = Sd3NetworkArgs()

Ranks = Mapping[str, int]  # rank of the adapter by the name of its layer


@dataclass(frozen=True)
class Layer:
    """A linear layer, or the convolution over patches, which is one.

    Attributes:
        rows: For one picture.
    """

    inputs: int
    outputs: int
    rows: int


@dataclass(frozen=True)
class Flops:
    """Of one step with one picture."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


@lru_cache(maxsize=32)
def layers_of(config: MMDiTConfig, num_image: int, num_text: int) -> Mapping[str, Layer]:
    """All layers of an MMDiT by name.

    Args:
        config: Sizes.
        num_image: Tokens of the picture.
        num_text: Tokens of the text.
    """
    with torch.device("meta"):
        model = MMDiT(config)

    def rows(name: str) -> int:
        if "adaLN" in name or name.startswith(("t_embedder", "y_embedder")):
            return 1
        return num_text if "context" in name else num_image

    layers = {
        name: Layer(module.weight[0].numel(), module.weight.shape[0], rows(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return MappingProxyType(layers)


def lora_ranks(config: MMDiTConfig, rank: int, args: Sd3NetworkArgs = EVERY_LINEAR) -> dict[str, int]:
    """What `networks.lora_sd3` gives an adapter; with split_qkv a layer's three parts together have thrice the rank."""
    planned = plan_modules(layers_of(config, 1, 1), denoiser_rules(args, rank, None))
    return {module.name: module.rank * module.num_parts for module in planned}


def step_flops(config: MMDiTConfig, *, pixels: int, ranks: Ranks | None, num_text: int = NUM_TOKENS) -> Flops:
    """Forward and backward pass of one square picture.

    Args:
        config: Sizes.
        pixels: Side of the picture.
        ranks: Of the adapters; None where the whole model trains.
        num_text: Tokens of the text.
    """
    num_image = (pixels // PIXELS_PER_CELL // config.patch_size) ** 2
    return _Walk(config, layers_of(config, num_image, num_text), ranks, num_image, num_text).total()


@dataclass
class _Walk:
    """Through the layers in the order of the forward pass, knowing which of the streams a gradient flows back through.

    Attributes:
        num_image: Tokens of the picture.
        num_text: Tokens of the text.
    """

    config: MMDiTConfig
    layers: Mapping[str, Layer]
    ranks: Ranks | None
    num_image: int
    num_text: int

    def total(self) -> Flops:
        """Of all layers."""
        self.sum = Flops()
        conditioning = self._chain(False, "t_embedder.mlp.0", "t_embedder.mlp.2")
        conditioning |= self._chain(False, "y_embedder.mlp.0", "y_embedder.mlp.2")
        live = {
            "x_block": self._layer("x_embedder.proj", False),
            "context_block": self._layer("context_embedder", False),
        }
        for index in range(self.config.depth):
            self._block(f"joint_blocks.{index}.", index, live, conditioning)
        modulated = self._layer("final_layer.adaLN_modulation.1", conditioning)
        self._layer("final_layer.linear", live["x_block"] or modulated)
        return self.sum

    def _block(self, name: str, index: int, live: dict[str, bool], conditioning: bool) -> None:
        """A joint block; updates which streams are live behind it."""
        modulated = {half: self._layer(f"{name}{half}.adaLN_modulation.1", conditioning) for half in live}
        heads = [self._layer(f"{name}{half}.attn.qkv", live[half] or modulated[half]) for half in live]
        attended = self._attention(self.num_image + self.num_text, any(heads))
        for half in live:
            if half == "context_block" and index == self.config.depth - 1:
                continue
            before = live[half] or modulated[half]
            after = self._layer(f"{name}{half}.attn.proj", attended) or before
            if half == "x_block" and index in self.config.dual_attention:
                alone = self._attention(self.num_image, self._layer(f"{name}{half}.attn2.qkv", before))
                after = self._layer(f"{name}{half}.attn2.proj", alone) or after
            live[half] = self._chain(after, f"{name}{half}.mlp.fc1", f"{name}{half}.mlp.fc2") or after

    def _chain(self, is_live: bool, *names: str) -> bool:
        for name in names:
            is_live = self._layer(name, is_live)
        return is_live

    def _layer(self, name: str, is_live: bool) -> bool:
        """Count a layer; whether a gradient flows back to its output."""
        layer = self.layers[name]
        product = 2 * layer.rows * layer.inputs * layer.outputs
        rank = 0 if self.ranks is None else self.ranks.get(name, 0)
        is_trained = self.ranks is None
        self.sum += Flops(product, product * (is_live + is_trained))
        if rank:
            down, up = 2 * layer.rows * layer.inputs * rank, 2 * layer.rows * layer.outputs * rank
            self.sum += Flops(down + up, 2 * up + down * (1 + is_live))
        return is_live or is_trained or bool(rank)

    def _attention(self, num_tokens: int, is_live: bool) -> bool:
        product = 4 * num_tokens**2 * self.config.hidden
        self.sum += Flops(product, 2 * product * is_live)
        return is_live


_KINDS: dict[str, Callable[[MMDiTConfig], Ranks | None]] = {
    "LoRA, rank 16": lambda config: lora_ranks(config, 16),
    "LoRA, rank 128": lambda config: lora_ranks(config, 128),
    "LoRA, rank 128, attention alone": lambda config: lora_ranks(config, 128, ATTENTION_ALONE),
    "whole model": lambda config: None,
}


def table(models: Iterable[str], sides: Iterable[int]) -> Iterator[str]:
    """The lines of the table."""
    head = ["model", "pixels", "training", "forward", "forward and backward"]
    yield f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |"
    for model in models:
        for side in sides:
            for kind, ranks in _KINDS.items():
                flops = step_flops(MODELS[model], pixels=side, ranks=ranks(MODELS[model]))
                yield f"| {model} | {side} | {kind} | {flops.forward / 1e12:.2f} | {flops.total / 1e12:.2f} |"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the table, in TFLOP for one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--pixels", nargs="+", type=int, default=[512, 1024])
    args = parser.parse_args(None if argv is None else list(argv))
    for line in table(args.models, args.pixels):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
