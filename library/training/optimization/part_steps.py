"""Steps of an optimizer over some of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer

from library.training.optimization.lean_optimizer import bare_optimizer

GroupPart = tuple[dict[str, Any], list[Parameter]]  # a group of the optimizer, and some of its parameters


@contextmanager
def narrowed(optimizer: Optimizer, part: Sequence[GroupPart]) -> Iterator[None]:
    """A context in which the optimizer has only these groups, and only these parameters in them."""
    groups, kept = optimizer.param_groups, [group["params"] for group, _ in part]
    optimizer.param_groups = [group for group, _ in part]
    for group, parameters in part:
        group["params"] = parameters
    try:
        yield
    finally:
        optimizer.param_groups = groups
        for (group, _), parameters in zip(part, kept, strict=True):
            group["params"] = parameters


class PartSteps:
    """Makes the step of an optimizer in parts. Right for optimizers that look at each parameter by itself."""

    def __init__(self, optimizer: Optimizer, parts: Sequence[Sequence[Parameter]]) -> None:
        """Deal out the parts.

        Args:
            optimizer: Ready to train; also inside accelerate's wrapper.
            parts: Of its parameters.
        """
        self._bare = bare_optimizer(optimizer)
        places = {id(p): index for index, group in enumerate(self._bare.param_groups) for p in group["params"]}
        self._parts: list[dict[int, list[Parameter]]] = []
        for part in parts:
            by_group: dict[int, list[Parameter]] = {}
            for parameter in part:
                by_group.setdefault(places[id(parameter)], []).append(parameter)
            self._parts.append(by_group)

    def step(self, number: int) -> None:
        """Step the part of this number. All parts of a step draw from the same place of the random stream."""
        bare = self._bare
        place = getattr(bare, "rounded_steps", None)
        with narrowed(bare, [(bare.param_groups[index], own) for index, own in self._parts[number].items()]):
            bare.step()
        if place is not None:
            bare.rounded_steps = place  # type: ignore[attr-defined]

    def end(self) -> None:
        """All parts have been stepped."""
        if hasattr(self._bare, "rounded_steps"):
            self._bare.rounded_steps += 1
