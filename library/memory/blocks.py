"""The blocks of a model: every model here is a row of them, and what is done to a model is done block by block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Items of the outermost lists of modules, in the order of the model."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def around_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What a model consists of beside its lists of blocks, as modules that have none inside."""
    for child in module.children():
        if any(isinstance(part, nn.ModuleList) for part in child.modules()):
            if not isinstance(child, nn.ModuleList):
                yield from around_blocks(child)
        else:
            yield child
