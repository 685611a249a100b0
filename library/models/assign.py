"""Filling a module that was built on the meta device, so that weights are held once and nothing is initialised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from library.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn


def assign_tensors(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Make `tensors` the parameters and buffers of a module, without a copy. They may be parts of one tensor.

    Args:
        module: Its state_dict names every tensor that is needed.
        tensors: {name: tensor}, in any dtype.
        what: How the part is called in an error, for instance "clip_l".

    Raises:
        CheckpointError: A name is missing or unknown, or a shape differs; the first few are listed.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [
        *_listed("are missing", expected.keys() - given.keys()),
        *_listed("are unknown", given.keys() - expected.keys()),
        *_listed(
            "have another shape",
            [
                f"{name} {list(given[name])} for {list(shape)}"
                for name, shape in expected.items()
                if given.get(name, shape) != shape
            ],
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{what}: {'; '.join(problems)}. The file is damaged or of another model; use another one."
        )
    # .data: chunks of one tensor count their changes apart, so that one may step while others are still read backward
    module.load_state_dict({name: tensor.data for name, tensor in tensors.items()}, strict=True, assign=True)


def _listed(problem: str, names: Collection[str]) -> list[str]:
    if not names:
        return []
    first = ", ".join(sorted(names)[:3])
    return [f"{len(names)} tensors {problem} ({first}{', ...' if len(names) > 3 else ''})"]


def shape_of(shapes: Mapping[str, tuple[int, ...]], name: str, what: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there.

    Raises:
        CheckpointError: It is not.
    """
    if name not in shapes:
        raise CheckpointError(f"{what}: {name} is missing. The file is damaged or of another model; use another one.")
    return shapes[name]


def count_levels(names: Collection[str], prefix: str, suffix: str = "") -> int:
    """How many numbers, counted from 0, stand between prefix and suffix in the names."""
    count = 0
    while any(name.startswith(f"{prefix}{count}.{suffix}") for name in names):
        count += 1
    return count
