"""Options about training the whole model instead of adapters beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True)
class EncoderChoice:
    """What the options say of one text encoder.

    Attributes:
        name: As the family calls it.
        is_asked: It shall train, unless its rate is 0.
        rate: None for --learning_rate.
        is_saved: It goes into the saved file, trained or not.
        flags: The options that ask for the one and the other.
    """

    name: str
    is_asked: bool
    rate: float | None
    is_saved: bool
    flags: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class FullOptions(OptionGroup):
    """What of the model trains, and how fast."""

    title: ClassVar[str] = "What trains"

    train_text_encoder: bool = opt(False, "Train CLIP-L and CLIP-G too.")
    train_t5xxl: bool = opt(False, "Train T5 too.")
    learning_rate_te1: float | None = opt(
        None, "Learning rate of CLIP-L; 0 does not train it. Not set means --learning_rate.", minimum=0
    )
    learning_rate_te2: float | None = opt(
        None, "Learning rate of CLIP-G; 0 does not train it. Not set means --learning_rate.", minimum=0
    )
    learning_rate_te3: float | None = opt(
        None, "Learning rate of T5; 0 does not train it. Not set means --learning_rate.", minimum=0
    )
    block_lr: str | None = opt(
        None,
        "Learning rates of the denoiser's parts, separated by commas: embedders, each block, final layer; 0 does not "
        "train a part. Goes before --learning_rate.",
    )
    num_last_block_to_freeze: int | None = opt(
        None, "Do not train the last n blocks of the denoiser.", unit="blocks", minimum=0
    )
    fused_optimizer_groups: int | None = opt(
        None, "Number of optimizers that step inside the backward pass.", no_effect="--fused_backward_pass does it"
    )
    use_safetensors: bool = opt(False, "Save as safetensors.", no_effect="--save_model_as says the format")

    @property
    def block_rates(self) -> tuple[float, ...] | None:
        """The numbers of --block_lr."""
        return None if self.block_lr is None else tuple(float(item) for item in self.block_lr.split(","))

    def check(self) -> Iterator[str]:
        try:
            rates = self.block_rates
        except ValueError:
            yield f"--block_lr takes numbers separated by commas, got {self.block_lr!r}."
            return
        if wrong := [rate for rate in rates or () if not 0 <= rate < float("inf")]:
            yield f"--block_lr takes numbers of 0 or more, got {wrong[0]:g}."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.train_text_encoder:
            yield "learning_rate_te1", "no --train_text_encoder"
            yield "learning_rate_te2", "no --train_text_encoder"
        if not self.train_t5xxl:
            yield "learning_rate_te3", "no --train_t5xxl"
