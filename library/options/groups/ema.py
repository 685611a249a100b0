"""Options about averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.options.spec import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class EmaOptions(OptionGroup):
    """An average of the trained weights over the last steps (EMA: exponential moving average)."""

    title: ClassVar[str] = "Averaged weights (EMA)"

    ema_decay: float | None = opt(
        None,
        "Average the trained weights over about the last 1 / (1 - this) steps, save the average beside each file as "
        "NAME-ema, and draw samples and validate with it. The training itself stays the same. Not set means off.",
        unit="0-1, about 0.999",
        minimum=0,
        maximum=1,
    )
    ema_device: str = opt(
        "gpu",
        "Where the average is kept, in float32: on the device of the trained weights, or in host memory, which saves "
        "4 bytes of GPU memory for each trained number.",
        choices=("cpu", "gpu"),
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.ema_decay is None:
            yield "ema_device", "only --ema_decay uses it"
