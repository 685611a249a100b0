"""The blocks of a model: every model here is a row of them, and what is done to a model is done block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

_USUAL_STREAMS = 2  # image and context


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks in the order in which they compute: what a model's `block_row()` gives, else items of outermost lists."""
    row = getattr(module, "block_row", None)
    if row is not None:
        yield from row()
        return
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def block_stacks(module: nn.Module) -> Iterator[tuple[int, nn.ModuleList]]:
    """Lists of blocks that take and give the same shapes, so that there might be more or fewer of them, with a number:
    what passes through those with the same one has the same shape."""
    stacks = getattr(module, "block_stacks", None)
    if stacks is not None:
        yield from stacks()
        return
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield 0, child
        else:
            yield from block_stacks(child)


def around_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What a model consists of beside its blocks, as modules that have none inside."""
    yield from _around(module, set(blocks(module)))


def _around(module: nn.Module, row: Collection[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        if child in row:
            continue
        if any(part in row for part in child.modules()):
            yield from _around(child, row)
        else:
            yield child


def num_streams(model: nn.Module) -> int:
    """How many inputs of a block, the first ones, are what the block before it gave."""
    return int(getattr(model, "num_streams", _USUAL_STREAMS))
