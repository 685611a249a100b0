"""One frozen denoiser for several trainings in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from library.options.spec import options_of
from library.training.processes import num_processes
from networks.other_packages import is_ours

if TYPE_CHECKING:
    from torch import nn

    from library.training.network_trainer import NetworkTrainer

# groups of options that say what the denoiser is, and what is done to it as a whole
_OF_THE_BASE = ("model", "memory", "precision", "compute", "distributed")
_MORE = ("base_weights", "base_weights_multiplier", "network_module")
_RECOMPUTING = ("gradient_checkpointing", "gradient_checkpointing_every_n_blocks", "cpu_offload_checkpointing")


class SharedBase:
    """Hands out the denoiser that the first training has read; it is on the device once."""

    def __init__(self) -> None:
        self.denoiser: nn.Module | None = None

    def family_like(self, family: Any) -> Any:
        """The same family, but that it reads the denoiser once."""
        return _SharedFamily(family, self)


class _SharedFamily:
    """A family that asks `SharedBase` for the denoiser, and the family that it stands for about all else."""

    def __init__(self, family: Any, base: SharedBase) -> None:
        self._family, self._base = family, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def for_buckets(self, *arguments: Any) -> _SharedFamily:
        return _SharedFamily(self._family.for_buckets(*arguments), self._base)

    def as_marked(self, files: Any) -> _SharedFamily:
        return _SharedFamily(self._family.as_marked(files), self._base)

    def load_denoiser(self, *arguments: Any, **more: Any) -> nn.Module:
        if self._base.denoiser is None:
            self._base.denoiser = self._family.load_denoiser(*arguments, **more)
        return self._base.denoiser


def why_not_shared(trainers: Sequence[NetworkTrainer]) -> str | None:
    """Why these trainings cannot use one denoiser in turn, step by step; None where they can.

    Args:
        trainers: With their options checked.
    """
    options = trainers[0].options
    if num_processes() > 1:
        return "there are several processes"
    if options.memory.swaps:
        return "--blocks_to_swap moves the blocks of one training only"
    if options.memory.fit is not None:
        return "--fit chooses settings for each training"
    if options.compute.torch_compile:
        return "--torch_compile compiles the layers together with the adapters of one training"
    if not is_ours(str(options.network.network_module)):
        return f"adapters of {options.network.network_module} cannot be taken off the layers"
    for trainer in trainers[1:]:
        for name in base_options(options):
            own, other = base_options(options)[name], base_options(trainer.options)[name]
            if own != other:
                return f"--{name} is {own} in one variation and {other} in another"
    return None


def base_options(options: Any) -> dict[str, Any]:
    """{option: value} of all that the denoiser depends on, and of what is done to it."""
    known, values = options_of(type(options)), options.values()
    groups = [getattr(options, name) for name in _OF_THE_BASE]
    own = {name for name in known if any(hasattr(group, name) for group in groups)}
    return {name: values[name] for name in sorted(own | {*_MORE, *_RECOMPUTING} & set(known))}
