"""What all adapters of a layer have in common: they are held beside the model and act in the layer's forward pass.

The layer stays where and what it is: while an adapter is attached only the layer's `forward` is another
function. Neither its state_dict nor the module tree of the model changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from networks.lora_linear import WIDE_TYPES


class LayerAdapter(nn.Module):
    """A trained change of one layer. Subclasses say what the change is.

    Args:
        name: Name in a file, for instance lora_unet_joint_blocks_0_x_block_attn_qkv.
        target: An nn.Linear or nn.Conv2d (or a subclass, such as a quantised linear layer).
        rank: What `--network_dim` sets.
        alpha: What `--network_alpha` sets.
        multiplier: Strength of the change; 0 is the layer without it.
    """

    def __init__(self, name: str, target: nn.Module, rank: int, alpha: float, *, multiplier: float = 1.0) -> None:
        super().__init__()
        self.name, self.rank, self.alpha = name, rank, alpha
        self.multiplier, self.enabled = multiplier, True
        self._target = (target,)  # in a tuple, so that it does not become a part of this module
        self._replaced: Callable[..., Tensor] | None = None
        self.base_forward: Callable[..., Tensor] = target.forward

    @property
    def target(self) -> nn.Module:
        """The adapted layer."""
        return self._target[0]

    # What a kind of adapter has to say

    def reset(self, generator: Generator | None = None) -> None:
        """Start values, with which the layer is not changed yet."""
        raise NotImplementedError

    def saved(self) -> dict[str, Tensor]:
        """{end of the key in a file: tensor}, detached; alpha is a number in float32."""
        raise NotImplementedError

    def load(self, values: Any) -> None:
        """Take over values of a file; that they fit must have been checked."""
        raise NotImplementedError

    def changed_weight(self, values: Any, device: torch.device | str) -> Tensor:
        """The layer's weight with the change, in float32 (or float64).

        Args:
            values: As for `load`; None takes the adapter's own.
            device: Where it is computed.
        """
        raise NotImplementedError

    def norm(self) -> Tensor:
        """Frobenius norm of the change of the weight at multiplier 1. Shape []."""
        raise NotImplementedError

    def shrink(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`."""
        raise NotImplementedError

    # What is the same for all

    def attach(self) -> None:
        """Let the layer give its output with the change. Attaching twice is attaching once."""
        if self.is_attached:
            return
        self._replaced = self.target.__dict__.get("forward")
        self.base_forward = self.target.forward
        self.target.forward = self.forward  # type: ignore[method-assign]

    def detach(self) -> None:
        """Give the layer its own forward back."""
        if not self.is_attached:
            return
        if self._replaced is None:
            del self.target.forward
        else:
            self.target.forward = self._replaced  # type: ignore[method-assign]
        self._replaced = None

    @property
    def is_attached(self) -> bool:
        """Whether the layer's outermost forward is this adapter's."""
        return getattr(self.target.__dict__.get("forward"), "__self__", None) is self

    @torch.no_grad()
    def merge(self, values: Any = None, device: torch.device | str | None = None) -> None:
        """Put the change, times the multiplier, into the layer's weight; computed in float32.

        Args:
            values: Those of a file; None takes the adapter's own, which must not be attached then.
            device: Where it is computed; None is where the weight is.

        Raises:
            ValueError: The weight is in fewer bits. Small changes would be lost there: merge before it is rounded.
        """
        weight: Tensor = self.target.weight  # type: ignore[assignment]
        if weight.dtype not in WIDE_TYPES:
            raise ValueError(f"{self.name}: a change can only be merged into a weight that is not in fewer bits")
        weight.copy_(self.changed_weight(values, device or weight.device))
