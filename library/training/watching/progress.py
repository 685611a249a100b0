"""The bar on the console: steps, mean loss, learning rate, memory; speed and time left come from tqdm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

_GIB = 1024**3
_PLUS = re.compile(r" plus( \d+)?$")  # names of groups with the rate of LoRA+


class ProgressBar:
    """A context. Only numbers that are known and finite are shown; the last one stays until the next one is known.

    Args:
        total: Optimizer steps of the run.
        initial: Steps that were done before, in a run that goes on.
        is_shown: False in processes that show nothing.
    """

    def __init__(self, total: int, *, initial: int = 0, is_shown: bool = True) -> None:
        from tqdm import tqdm

        self._bar: tqdm[None] = tqdm(total=total, initial=initial, desc="steps", disable=not is_shown)
        self._shown: dict[str, str] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(
        self,
        num_steps: int = 1,
        *,
        loss: float | None = None,
        rate: float | None = None,
        memory: int | None = None,
    ) -> None:
        """Advance; call it once a step. All numbers must be on the host already: nothing here waits for a device.

        Args:
            num_steps: Less than 0 where a run goes back to an earlier state.
            loss: Mean of the last steps.
            rate: Learning rate.
            memory: Bytes in use.
        """
        if self._bar.disable:
            return
        words = {
            "avr_loss": f"{loss:.4f}" if is_known(loss) else None,
            "lr": f"{rate:.3g}" if is_known(rate) else None,
            "memory": f"{memory / _GIB:.1f}GiB" if memory is not None else None,
        }
        self._shown |= {name: word for name, word in words.items() if word is not None}
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(num_steps)

    def close(self) -> None:
        """Show the last numbers and leave the bar where it is."""
        self._bar.close()


def rate_to_show(rates: Mapping[str, float], encoder_names: Sequence[str]) -> float | None:
    """One number for all of a run's rates: the highest of the denoiser's, without those of LoRA+; that of the encoders
    only where nothing else trains.

    Args:
        rates: {"lr/<group>": rate}, as `learning_rates` gives them. Where the optimizer has found rates, these count.
        encoder_names: How names of groups of text encoders may begin, beside "textencoder".
    """
    own = {name.removeprefix("lr/d*lr/"): rate for name, rate in rates.items() if name.startswith("lr/d*lr/")}
    shown = own or {name.removeprefix("lr/"): rate for name, rate in rates.items()}
    plain = {name: rate for name, rate in shown.items() if not _PLUS.search(name)} or shown
    encoders = ("textencoder", *encoder_names)
    denoiser = [rate for name, rate in plain.items() if not name.startswith(encoders)]
    return max(denoiser or plain.values(), default=None)


def is_known(value: float | None) -> bool:
    """Whether there is a number, and a finite one."""
    return value is not None and math.isfinite(value)
