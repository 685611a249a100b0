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
        flags: The options that ask for the one and the other; None where that is not asked for by an option.
        num_steps: Optimizer steps after which it trains no more; None for all.
    """

    name: str
    is_asked: bool
    rate: float | None
    is_saved: bool
    flags: tuple[str | None, str | None]
    num_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class FullOptions(OptionGroup):
    """What of the model trains, and how fast: what is said of the denoiser. Families add their text encoders."""

    title: ClassVar[str] = "What trains"

    block_lr: str | None = opt(
        None,
        "Learning rates of the denoiser's parts, separated by commas: embedders, each block, final layer; 0 does not "
        "train a part. Goes before --learning_rate.",
    )
    use_safetensors: bool = opt(False, "Save a model that was read from a .ckpt file as safetensors.")

    @property
    def block_rates(self) -> tuple[float, ...] | None:
        """The numbers of --block_lr."""
        return None if self.block_lr is None else tuple(float(item) for item in self.block_lr.split(","))

    @property
    def num_frozen_blocks(self) -> int:
        """How many of the denoiser's last blocks do not train."""
        return 0

    def check(self) -> Iterator[str]:
        try:
            rates = self.block_rates
        except ValueError:
            yield f"--block_lr takes numbers separated by commas, got {self.block_lr!r}."
            return
        if wrong := [rate for rate in rates or () if not 0 <= rate < float("inf")]:
            yield f"--block_lr takes numbers of 0 or more, got {wrong[0]:g}."


@dataclass(frozen=True, kw_only=True)
class ClipPairOptions(FullOptions):
    """The same for models with CLIP-L and CLIP-G."""

    train_text_encoder: bool = opt(False, "Train CLIP-L and CLIP-G too.")
    learning_rate_te1: float | None = opt(
        None, "Learning rate of CLIP-L; 0 does not train it. Not set means --learning_rate.", minimum=0
    )
    learning_rate_te2: float | None = opt(
        None, "Learning rate of CLIP-G; 0 does not train it. Not set means --learning_rate.", minimum=0
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.train_text_encoder:
            yield "learning_rate_te1", "no --train_text_encoder"
            yield "learning_rate_te2", "no --train_text_encoder"

    def clip_choices(self, is_saved: bool, saving_flag: str | None) -> tuple[EncoderChoice, EncoderChoice]:
        """What is said of both.

        Args:
            is_saved: Whether they go into the saved file.
            saving_flag: The option that says so.
        """
        flags = "--train_text_encoder", saving_flag
        return (
            EncoderChoice("clip_l", self.train_text_encoder, self.learning_rate_te1, is_saved, flags),
            EncoderChoice("clip_g", self.train_text_encoder, self.learning_rate_te2, is_saved, flags),
        )
