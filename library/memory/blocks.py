"""The blocks of a model: every model here is a row of them, and what is done to a model is done block by block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Items of the outermost lists of modules, in the order of the model."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)
