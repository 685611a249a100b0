"""Options about optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_STEPPING_IN_BACKWARD = ("adamw", "adamw8bit", "adafactor")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(OptionGroup):
    """Optimizer, learning rate and its schedule."""

    title: ClassVar[str] = "Optimizer"

    optimizer_type: str = opt(
        "",
        "AdamW, AdamW8bit, PagedAdamW8bit, Lion, Lion8bit, SGDNesterov, Adafactor, DAdaptation, Prodigy, "
        "AdamWScheduleFree and others, in any letter case; a class of torch.optim or pytorch-optimizer, or a full "
        "module.Class. Not set means AdamW.",
    )
    use_8bit_adam: bool = opt(False, "The same as --optimizer_type AdamW8bit.")
    use_lion_optimizer: bool = opt(False, "The same as --optimizer_type Lion.")
    optimizer_args: tuple[str, ...] | None = opt(
        None,
        'Further arguments of the optimizer, for instance "weight_decay=0.01" "betas=(0.9,0.99)".',
        metavar="KEY=VALUE",
    )
    learning_rate: float = opt(2e-6, "Learning rate; 0 trains only what has a rate of its own.", minimum=0)
    max_grad_norm: float = opt(1.0, "Gradients are scaled down to this norm; 0 means never.", minimum=0)
    lr_scheduler: str = opt(
        "constant",
        "Course of the learning rate: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, "
        "polynomial, inverse_sqrt, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay, "
        "piecewise_constant or reduce_lr_on_plateau.",
    )
    lr_warmup_steps: int | float = opt(
        0, "The learning rate rises from 0 over this many steps, or this share of all steps.", unit="steps, 0.1 or 10%"
    )
    lr_decay_steps: int | float = opt(0, "Length of the final decay.", unit="steps, 0.1 or 10%")
    lr_scheduler_num_cycles: int = opt(1, "Number of restarts.", minimum=1)
    lr_scheduler_power: float = opt(1, "Power of the polynomial.")
    lr_scheduler_timescale: int | None = opt(None, "Time scale of inverse_sqrt.", unit="steps")
    lr_scheduler_min_lr_ratio: float | None = opt(None, "Lowest learning rate, as a share of the highest.", unit="0-1")
    lr_scheduler_type: str = opt(
        "", "A class of torch.optim.lr_scheduler, or another one as module.Class, in place of --lr_scheduler."
    )
    lr_scheduler_args: tuple[str, ...] | None = opt(None, "Further arguments of the schedule.", metavar="KEY=VALUE")
    fused_backward_pass: bool = opt(
        False,
        "Let the optimizer step each weight inside the backward pass, which frees its gradient at once. For AdamW, "
        "AdamW8bit and Adafactor; --max_grad_norm acts on each weight.",
    )
    blockwise_fused_optimizers: bool = opt(
        False, "Like --fused_backward_pass, block by block; --max_grad_norm acts on each block."
    )

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer as given, or AdamW."""
        if self.use_8bit_adam:
            return "AdamW8bit"
        return "Lion" if self.use_lion_optimizer else self.optimizer_type.strip() or "AdamW"

    @property
    def steps_in_backward(self) -> str | None:
        """The flag that lets the optimizer step inside the backward pass; None where it steps afterwards."""
        return next((f"--{name}" for name in self._switches_in_backward if getattr(self, name)), None)

    @property
    def _switches_in_backward(self) -> tuple[str, ...]:
        return ("fused_backward_pass", "blockwise_fused_optimizers")

    def check(self) -> Iterator[str]:
        choices = ["--use_8bit_adam"] * self.use_8bit_adam + ["--use_lion_optimizer"] * self.use_lion_optimizer
        if self.optimizer_type.strip():
            choices.append(f"--optimizer_type {self.optimizer_type}")
        if len(choices) > 1:
            yield f"{' and '.join(choices)} each choose an optimizer. Keep one."
        if self.blockwise_fused_optimizers and self.steps_in_backward != "--blockwise_fused_optimizers":
            yield f"{self.steps_in_backward} and --blockwise_fused_optimizers exclude each other. Keep one of them."
        if self.steps_in_backward and self.optimizer_name.lower() not in _STEPPING_IN_BACKWARD:
            yield (
                f"{self.steps_in_backward} works with AdamW, AdamW8bit and Adafactor, not with {self.optimizer_name}. "
                "Use one of these, or leave it out."
            )
        if self.lr_scheduler_type and self.lr_warmup_steps:
            yield f"--lr_scheduler_type {self.lr_scheduler_type} has no warm-up. Leave out --lr_warmup_steps."
        elif self.lr_scheduler == "constant" and self.lr_warmup_steps:
            yield "--lr_scheduler constant has no warm-up. Use constant_with_warmup, or leave out --lr_warmup_steps."
        yield from malformed_arguments("--optimizer_args", self.optimizer_args)
        yield from malformed_arguments("--lr_scheduler_args", self.lr_scheduler_args)


@dataclass(frozen=True, kw_only=True)
class FullOptimizerOptions(OptimizerOptions):
    """The same, with a name that older commands for whole models have."""

    fused_optimizer_groups: int | None = opt(
        None,
        "Means --fused_backward_pass, which frees each gradient at once, and not only when those of a group are there. "
        "0 means off.",
        minimum=1,
        zero_is_off=True,
    )

    @property
    def _switches_in_backward(self) -> tuple[str, ...]:
        first, *others = super()._switches_in_backward
        return (first, "fused_optimizer_groups", *others)

    def remarks(self) -> Iterator[str]:
        yield from super().remarks()
        if self.fused_optimizer_groups and not self.fused_backward_pass:
            yield f"--fused_optimizer_groups {self.fused_optimizer_groups} means --fused_backward_pass."


def malformed_arguments(flag: str, items: tuple[str, ...] | None) -> Iterator[str]:
    """Sentences about items that are not key=value, and keys given twice."""
    seen: set[str] = set()
    for item in items or ():
        key, equals, _ = item.partition("=")
        if not equals or not key.strip():
            yield f"{flag} takes items of the form key=value, got {item!r}."
        elif key.strip() in seen:
            yield f"{flag} has {key.strip()} twice. Keep one of them."
        seen.add(key.strip())
