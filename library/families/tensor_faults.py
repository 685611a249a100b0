"""Whether a network in a file has the tensors that its sizes ask for."""

from __future__ import annotations

from collections.abc import Mapping

from library.errors import CheckpointError
from library.families.prefixes import first_of

Shapes = Mapping[str, tuple[int, ...]]


def check_tensors(shapes: Shapes, expected: Shapes, what: str) -> None:
    """Refuse a network with tensors that are missing, too many or of another shape.

    Args:
        shapes: {name: shape} in the file.
        expected: {name: shape} of the network.
        what: It is called in an error, for instance "the MMDiT".

    Raises:
        CheckpointError: Lists the first few.
    """
    faults = {
        "missing": sorted(set(expected) - set(shapes)),
        "unknown": sorted(set(shapes) - set(expected)),
        "of another shape": sorted(name for name in set(shapes) & set(expected) if shapes[name] != expected[name]),
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault} ({first_of(names)})" for fault, names in faults.items() if names)
        raise CheckpointError(f"tensors of {what} are wrong: {listed}. Download the file again, or use another.")
