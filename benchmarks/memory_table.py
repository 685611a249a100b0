"""Memory that training a whole model takes, computed from its real sizes: `python -m benchmarks.memory_table`.

Computed, not measured: no GPU was at hand. Weights, gradients and optimizer state are counts of numbers times their
bytes. What the passes take is counted by running them on tensors without numbers (`step_memory.py`). One picture of
1024 x 1024 pixels, 333 tokens of text, latents and text states from caches, so neither VAE nor text encoders are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch

from benchmarks.step_memory import Passes, Work, block_numbers, blocks_alone, count_passes, make_model, weights_alone
from library.models.mmdit import MMDiTConfig

GIB = 2**30
OVERHEAD = GIB  # assumed: CUDA's context, work space of its libraries, gaps that the allocator cannot use
CARDS = (12, 16, 24, 32, 40, 48, 80, 141)  # GiB
TO_SPARE = 0.1  # of what is computed
NUMBERS_AT_A_TIME = 2**22  # weights in bf16 take their steps in float32 so many at a time, or one that has more
LEAST_IN_8_BITS, SCALED_TOGETHER = 4096, 256  # numbers; bitsandbytes keeps smaller weights' state in float32

MODELS = {
    "SD3-medium": MMDiTConfig(depth=24, num_heads=24, position_side=192),
    "SD3.5-medium": MMDiTConfig(
        depth=24, num_heads=24, position_side=384, qk_norm=True, dual_attention=tuple(range(13))
    ),
    "SD3.5-large": MMDiTConfig(depth=38, num_heads=38, position_side=192, qk_norm=True),
}

FUSED, BLOCKWISE = "--fused_backward_pass", "--blockwise_fused_optimizers"
_PARTS = {FUSED: weights_alone, BLOCKWISE: blocks_alone, "": None}
_STEP_BYTES = {  # for a moment, of each number that takes its step: (weights in float32, weights in bf16)
    "AdamW": (0, 23),
    "AdamW8bit": (0, 15),
    "Adafactor": (8, 16),
}


@dataclass(frozen=True)
class Setting:
    """How is trained.

    Attributes:
        is_half: --full_bf16.
        optimizer: Name.
        recomputes: --gradient_checkpointing.
        stepping: Flag that lets the optimizer step inside the backward pass; empty for none.
        cards: That share the weights (FSDP2).
    """

    is_half: bool
    optimizer: str
    recomputes: bool = True
    stepping: str = ""
    cards: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.is_half else torch.float32

    @property
    def words(self) -> str:
        """Options, for the table."""
        flags = ["--full_bf16"] * self.is_half + ["--gradient_checkpointing"] * self.recomputes
        listed = " ".join([self.optimizer, *flags, *([self.stepping] if self.stepping else [])])
        return f"`{listed}`" + (f", on each of {self.cards} cards (FSDP2)" if self.cards > 1 else "")


SETTINGS = (
    Setting(False, "AdamW"),
    Setting(False, "AdamW8bit"),
    Setting(True, "AdamW8bit", recomputes=False),
    Setting(True, "AdamW"),
    Setting(True, "AdamW8bit"),
    Setting(True, "AdamW8bit", stepping=FUSED),
    Setting(True, "Adafactor", stepping=FUSED),
    Setting(False, "AdamW", cards=4),
    Setting(True, "AdamW", cards=4),
    Setting(True, "AdamW8bit", cards=4),
)


@dataclass(frozen=True)
class Model:
    """Sizes of a model's weights.

    Attributes:
        shapes: Of what trains.
        num_positions: Numbers of the table of positions, which stays on the host.
        block: Numbers of the largest joint block.
        rest: Numbers outside of blocks.
    """

    shapes: tuple[tuple[int, ...], ...]
    num_positions: int
    block: int
    rest: int

    @cached_property
    def count(self) -> int:
        """How many numbers train."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def largest(self) -> int:
        """Numbers of the largest weight."""
        return max(torch.Size(shape).numel() for shape in self.shapes)


def sizes_of(config: MMDiTConfig) -> Model:
    """Read them off the model on the meta device."""
    with torch.device("meta"):
        model = make_model(config, torch.float32)
    shapes = tuple(tuple(parameter.shape) for parameter in model.parameters())
    return Model(shapes, model.pos_embed.numel(), *block_numbers(model))


def state_bytes(shapes: Iterable[Sequence[int]], optimizer: str, *, is_half: bool) -> int:
    """What an optimizer keeps, but for counts of steps.

    Args:
        shapes: Of the weights.
        optimizer: AdamW, AdamW8bit or Adafactor.
        is_half: The weights are in bf16; then what has a weight's shape is, too, but for AdamW8bit.
    """
    wide = 2 if is_half else 4
    total = 0
    for shape in shapes:
        count = torch.Size(shape).numel()
        if optimizer == "AdamW":
            total += 2 * wide * count
        elif optimizer == "AdamW8bit":
            scales = 4 * -(-count // SCALED_TOGETHER)
            total += 2 * (count + scales) if count >= LEAST_IN_8_BITS else 2 * 4 * count
        elif len(shape) < 2:
            total += wide * count
        else:  # means over rows and over columns
            total += 4 * (count // shape[-1] + count // shape[-2])
    return total


def step_bytes(model: Model, setting: Setting) -> int:
    """What the optimizer takes for a moment while it steps a weight, or a few small ones."""
    each = _STEP_BYTES[setting.optimizer][setting.is_half]
    is_alone = not setting.is_half or setting.stepping == FUSED
    return each * (model.largest if is_alone else max(model.largest, NUMBERS_AT_A_TIME))


def gradient_bytes(model: Model, setting: Setting) -> int:
    """All gradients; where they are freed inside the backward pass, those of the largest weight or block."""
    numbers = {FUSED: model.largest, BLOCKWISE: model.block}.get(setting.stepping, -(-model.count // setting.cards))
    return numbers * setting.dtype.itemsize


def weight_bytes(model: Model, setting: Setting) -> int:
    """On a card. The table of positions stays on the host."""
    return -(-model.count // setting.cards) * setting.dtype.itemsize


@dataclass(frozen=True)
class Row:
    """Bytes on a card."""

    weights: int
    state: int
    gradients: int
    kept: int
    passes: int
    total: int

    def card(self) -> str:
        """The smallest usual size of card that has room, and some to spare."""
        return next((f"{size}" for size in CARDS if self.total * (1 + TO_SPARE) <= size * GIB), "none")

    def cells(self) -> list[str]:
        """For the table."""
        figures = (self.weights, self.state, self.gradients, self.kept, self.passes, self.total)
        return [*(f"{figure / GIB:.1f}" for figure in figures), self.card()]


@cache
def passes_of(config: MMDiTConfig, dtype: torch.dtype, recomputes: bool, stepping: str) -> Passes:
    """Counted once for all optimizers."""
    return count_passes(config, Work(dtype, recomputes, _PARTS[stepping]))


def compute(config: MMDiTConfig, setting: Setting) -> Row:
    """A row of the table."""
    model = sizes_of(config)
    weights, gradients = weight_bytes(model, setting), gradient_bytes(model, setting)
    state = state_bytes(model.shapes, setting.optimizer, is_half=setting.is_half) // setting.cards
    step = step_bytes(model, setting) // setting.cards
    if setting.cards > 1:
        kept, peak = _sharded_passes(config, model, setting, gradients)
    else:
        passes = passes_of(config, setting.dtype, setting.recomputes, setting.stepping)
        kept, peak = passes.kept, passes.peak
    highest = peak + step if setting.stepping else max(peak, gradients + step)
    return Row(weights, state, gradients, kept, peak, weights + state + highest + OVERHEAD)


def _sharded_passes(config: MMDiTConfig, model: Model, setting: Setting, gradients: int) -> tuple[int, int]:
    """What the passes of a sharded model keep and take: two blocks as a whole (one in use, one on its way) come on top.

    A whole block has weights and gradients in bf16, and gradients in float32 while they are summed up over the cards.
    """
    passes = passes_of(config, torch.bfloat16, setting.recomputes, FUSED)  # no gradient stays as a whole
    gathered = (2 * model.block + model.rest) * (2 + 2 + 4)
    return passes.kept, gradients + gathered + passes.peak


def table(models: Iterable[str], settings: Sequence[Setting] = SETTINGS) -> Iterator[str]:
    """The lines of the table."""
    head = ["model", "setting", "weights", "optimizer", "gradients", "kept", "passes", "in all", "card"]
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for name in models:
        for setting in settings:
            yield f"| {' | '.join([name, setting.words, *compute(MODELS[name], setting).cells()])} |"


def main(argv: Iterable[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(SETTINGS))), help="settings, from 0")
    args = parser.parse_args(None if argv is None else list(argv))
    for line in table(args.models, [SETTINGS[row] for row in args.rows]):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
