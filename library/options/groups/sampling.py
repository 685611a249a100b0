"""Options about pictures drawn while training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

SAMPLERS = (
    "ddim",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm_2",
    "dpm_2_a",
    "dpmsolver",
    "dpmsolver++",
    "dpmsingle",
    "k_lms",
    "k_euler",
    "k_euler_a",
    "k_dpm_2",
    "k_dpm_2_a",
)
"""Names that `--sample_sampler` and `--ss` of a prompt know."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(OptionGroup):
    """Pictures drawn while training."""

    title: ClassVar[str] = "Sample pictures"

    sample_prompts: Path | None = opt(
        None, "File of prompts: .txt, .toml or .json. It may be edited while a training runs."
    )
    sample_every_n_steps: int | None = opt(
        None,
        "Draw the prompts every n steps, before the model of that step is saved; 0 means never.",
        unit="steps",
        minimum=1,
        zero_is_off=True,
    )
    sample_every_n_epochs: int | None = opt(
        None,
        "Draw the prompts every n epochs, after the model of that epoch is saved; goes before --sample_every_n_steps. "
        "0 means never.",
        unit="epochs",
        minimum=1,
        zero_is_off=True,
    )
    sample_at_first: bool = opt(False, "Draw the prompts before the first step too.")
    sample_sampler: str = opt(
        "ddim",
        "Sampler of prompts that name none with --ss.",
        choices=SAMPLERS,
    )

    @property
    def is_on(self) -> bool:
        """Whether any sample is asked for."""
        return bool(self.sample_every_n_steps or self.sample_every_n_epochs or self.sample_at_first)

    def check(self) -> Iterator[str]:
        if self.is_on and self.sample_prompts is None:
            yield "--sample_every_n_steps, --sample_every_n_epochs and --sample_at_first need --sample_prompts."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.sample_every_n_epochs:
            yield "sample_every_n_steps", "--sample_every_n_epochs goes before it"
        if not self.is_on:
            yield "sample_prompts", "no --sample_every_n_steps, --sample_every_n_epochs or --sample_at_first"
