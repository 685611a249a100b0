"""Memory of a step as a row of stretches: every block's part of both passes is counted once, and a model of any depth
is put together from the parts. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Segment:
    """What a stretch of a model (a block, or what is before and behind the blocks) takes in both passes, in bytes.

    Attributes:
        kept: What its forward pass leaves behind, less what it frees.
        forward_peak: The most that its forward pass takes, beside what was there at its beginning.
        backward_change: What there is more, or less, after its backward pass.
        backward_peak: The most that its backward pass takes, beside what was there at its beginning.
        gradients: Of `backward_change`, what stays until the optimizer steps.
    """

    kept: int
    forward_peak: int
    backward_change: int = 0
    backward_peak: int = 0
    gradients: int = 0

    def with_more(self, num_bytes: int) -> Segment:
        """The same where for a moment in each pass so much more is there."""
        peaks = {"forward_peak": self.forward_peak + num_bytes, "backward_peak": self.backward_peak + num_bytes}
        return replace(self, **peaks)


def highest(segments: Sequence[Segment], *, has_gradients: bool = False) -> int:
    """The most that both passes take over all segments, in bytes.

    Args:
        segments: In the order of the forward pass.
        has_gradients: Those of an earlier batch of the step are there from the beginning, and new ones are added.
    """
    now = peak = sum(each.gradients for each in segments) if has_gradients else 0
    for each in segments:
        peak = max(peak, now + each.forward_peak)
        now += each.kept
    for each in reversed(segments):
        peak = max(peak, now + each.backward_peak)
        now += each.backward_change - (each.gradients if has_gradients else 0)
    return peak


def highest_forward(segments: Sequence[Segment]) -> int:
    """The most that the forward pass alone takes, in bytes."""
    now = peak = 0
    for each in segments:
        peak = max(peak, now + each.forward_peak)
        now += each.kept
    return peak
