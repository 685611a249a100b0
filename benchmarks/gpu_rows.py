"""The rows of `benchmarks.gpu_step`, the most important ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.flops import ATTENTION_ALONE, EVERY_LINEAR, Ranks, lora_ranks
from benchmarks.plain_loop import LEARNING_RATE, fused_adamw
from library.models.mmdit import MMDiTConfig
from networks.sd3_args import Sd3NetworkArgs

OURS, WRITTEN, DIFFUSERS = "ours", "hand-written loop", "diffusers + peft"
HALF, ALL = "half", "all"


@dataclass(frozen=True)
class Training:
    """What trains.

    Attributes:
        rank: Of the LoRA; 0 where the whole model trains.
        args: Which layers have one.
        flags: Of our script.
        is_in_8_bits: The optimizer is bitsandbytes' AdamW8bit; else fused AdamW, or what the flags say.
    """

    rank: int
    args: Sd3NetworkArgs = EVERY_LINEAR
    flags: tuple[str, ...] = ()
    is_in_8_bits: bool = False

    @property
    def is_attention_alone(self) -> bool:
        """Only the projections of attention have a LoRA."""
        return self.args is ATTENTION_ALONE

    def ranks(self, config: MMDiTConfig) -> Ranks | None:
        """For counting FLOPs."""
        return lora_ranks(config, self.rank, self.args) if self.rank else None

    def optimizer(self) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
        """For a loop that is not ours."""
        return _adamw8bit if self.is_in_8_bits else fused_adamw

    def all_flags(self) -> list[str]:
        """With what follows from the other attributes."""
        flags = [*self.flags, "--optimizer_type=AdamW8bit"] if self.is_in_8_bits else [*self.flags]
        if not self.rank:
            return [*flags, "--learning_rate=1e-5"]
        return [*flags, f"--network_dim={self.rank}", f"--network_alpha={self.rank}", "--learning_rate=1e-4"]


def _adamw8bit(trained: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    made: Any = AdamW8bit(trained, lr=LEARNING_RATE)
    return made


_NO_OTHER_LAYERS = [f"{half}_{kind}_dim=0" for half in ("context", "x") for kind in ("mlp", "mod")]
_ADAFACTOR = (
    *("--full_bf16", "--optimizer_type=Adafactor"),
    *("--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False"),
)

TRAININGS = {
    "LoRA 8": Training(8),
    "LoRA 16": Training(16),
    "LoRA 128": Training(128, is_in_8_bits=True),
    "LoRA 128, attention": Training(128, ATTENTION_ALONE, ("--network_args", *_NO_OTHER_LAYERS), is_in_8_bits=True),
    "whole, AdamW8bit": Training(0, flags=("--full_bf16",), is_in_8_bits=True),
    "whole, Adafactor": Training(0, flags=(*_ADAFACTOR, "--fused_backward_pass", "--max_grad_norm=0")),
    "whole, Adafactor after the passes": Training(0, flags=_ADAFACTOR),
}


@dataclass(frozen=True)
class Variant:
    """How it is computed.

    Attributes:
        flags: Of our script.
        swapped: How many blocks are swapped: HALF, ALL or "" for none.
        against: Name of the variant that its time is compared with.
        loop: OURS, or another loop.
    """

    flags: tuple[str, ...] = ()
    swapped: str = ""
    against: str = "plain"
    loop: str = OURS

    @property
    def recomputes(self) -> bool:
        """Gradient checkpointing."""
        return _RECOMPUTE in self.flags

    def all_flags(self, depth: int) -> list[str]:
        """With the number of swapped blocks, of so many."""
        number = {HALF: depth // 2, ALL: depth}.get(self.swapped)
        return [*self.flags, *([f"--blocks_to_swap={number}"] if number else [])]


_RECOMPUTE = "--gradient_checkpointing"
_NF4 = "--base_weights_dtype=nf4"
_INT8 = "--base_weights_dtype=int8"
_CHECKPOINTING = "checkpointing"

VARIANTS = {
    "plain": Variant(),
    _CHECKPOINTING: Variant((_RECOMPUTE,)),
    "every-2nd": Variant((_RECOMPUTE, "--gradient_checkpointing_every_n_blocks=2")),
    "fp8": Variant(("--fp8_base",)),
    "fp8-checkpointing": Variant(("--fp8_base", _RECOMPUTE), against=_CHECKPOINTING),
    "int8-checkpointing": Variant((_INT8, _RECOMPUTE), against=_CHECKPOINTING),
    "nf4": Variant((_NF4,)),
    "nf4-checkpointing": Variant((_NF4, _RECOMPUTE), against=_CHECKPOINTING),
    "swap-half": Variant(swapped=HALF),
    "swap-all": Variant(swapped=ALL),
    "swap-half-checkpointing": Variant((_RECOMPUTE,), HALF, against=_CHECKPOINTING),
    "swap-all-checkpointing": Variant((_RECOMPUTE,), ALL, against=_CHECKPOINTING),
    "fp8-swap-all-checkpointing": Variant(("--fp8_base", _RECOMPUTE), ALL, against="fp8-checkpointing"),
    "compiled": Variant(("--torch_compile",)),
    "compiled-checkpointing": Variant(("--torch_compile", _RECOMPUTE), against=_CHECKPOINTING),
    "compiled-swap-all-checkpointing": Variant(("--torch_compile", _RECOMPUTE), ALL, against="compiled-checkpointing"),
    "written": Variant(loop=WRITTEN),
    "written-checkpointing": Variant((_RECOMPUTE,), against=_CHECKPOINTING, loop=WRITTEN),
    "diffusers": Variant(loop=DIFFUSERS),
    "diffusers-checkpointing": Variant((_RECOMPUTE,), against=_CHECKPOINTING, loop=DIFFUSERS),
}
_BOTH = ("plain", _CHECKPOINTING)
_SWAPS = (_CHECKPOINTING, "swap-all-checkpointing", "swap-half-checkpointing")
_OTHERS = ("written", "diffusers", "written-checkpointing", "diffusers-checkpointing")
_COMMON = (*_BOTH, "compiled", "written", "swap-all-checkpointing", "fp8-checkpointing")


FAMILIES = {
    "sd3": ("SD3-medium", "SD3.5-medium", "SD3.5-large"),
    "sdxl": ("SDXL",),
    "sd15": ("SD1.5",),
}


@dataclass(frozen=True)
class Row:
    """One line of the table; the fields are keys of the tables above and of `subject.SUBJECTS`."""

    model: str
    pixels: int
    batch: int
    training: str
    variant: str


def rows() -> list[Row]:
    """All of them, each once."""
    return list(dict.fromkeys((*_in_order(), *_unets_in_order())))


def _in_order() -> Iterator[Row]:
    medium, large, first = "SD3.5-medium", "SD3.5-large", "SD3-medium"
    published = ("LoRA 128, attention", "LoRA 128")
    yield from _rows(medium, 1024, 3, published[0], (*_BOTH, "fp8-checkpointing", "compiled", *_OTHERS[:2]))
    yield from _rows(medium, 1024, 3, published[1], (*_BOTH, "compiled", "nf4-checkpointing"))
    yield from _rows(large, 1024, 1, "LoRA 16", ("plain", *_SWAPS))
    yield from _rows(medium, 1024, 4, "LoRA 16", ("plain", *_SWAPS, "swap-all", "swap-half"))
    yield from _rows(medium, 512, 1, "whole, Adafactor", _SWAPS)
    yield from _rows(medium, 1024, 3, published[0], ("compiled-checkpointing", "nf4-checkpointing", *_OTHERS[2:]))
    yield from _rows(medium, 1024, 3, published[1], ("fp8-checkpointing", "compiled-checkpointing", *_OTHERS))
    yield from _rows(medium, 1024, 1, "LoRA 16", VARIANTS)
    yield from _rows(medium, 512, 1, "whole, AdamW8bit", (*_BOTH, "compiled"))
    for batch, pixels in ((1, 1024), (4, 1024), (1, 512), (4, 512)):
        for model in (medium, large, first):
            yield from _rows(model, pixels, batch, "LoRA 16", _COMMON)
            yield from _rows(model, pixels, batch, "whole, AdamW8bit", _BOTH)
            yield from _rows(model, pixels, batch, "whole, Adafactor", _SWAPS)
    for batch, pixels in ((1, 1024), (4, 1024), (1, 512), (4, 512)):
        for model in (medium, large, first):
            yield from _rows(model, pixels, batch, "LoRA 16", VARIANTS)


def _unets_in_order() -> Iterator[Row]:
    xl, first = "SDXL", "SD1.5"
    lora, fused, after = "LoRA 8", "whole, Adafactor", "whole, Adafactor after the passes"
    important = (*_BOTH, "fp8-checkpointing", "compiled", *_OTHERS, "swap-all-checkpointing")
    yield from _rows(xl, 1024, 1, lora, important)
    yield from _rows(xl, 1024, 1, fused, (_CHECKPOINTING, "swap-half-checkpointing"))
    yield from _rows(xl, 1024, 1, after, _BOTH)
    yield from _rows(first, 512, 4, lora, important)
    for model in (xl, first):
        yield from _rows(model, 1024 if model == xl else 512, 1, lora, VARIANTS)
    yield from _rows(xl, 1024, 4, lora, _COMMON)
    yield from _rows(first, 512, 4, fused, _BOTH)


def _rows(model: str, pixels: int, batch: int, training: str, variants: Iterable[str]) -> Iterator[Row]:
    for variant in variants:
        yield Row(model, pixels, batch, training, variant)
