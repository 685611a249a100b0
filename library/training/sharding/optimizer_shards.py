"""The state of an optimizer over rows of weights, as one process would have it.

The state of every process has the form of `optimizer_state.py`. What one process would have saved differs in the shapes
only: tensors as large as a weight are cut along the same rows. So a run can go on with another number of processes.

bitsandbytes keeps its averages in 8 bits with one scale for each 256 numbers. Scales can be put one after the other
where parts begin at such a block; of weights where they do not, the averages are kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from library.errors import OptionError
from library.training.optimization.lean_optimizer import bare_optimizer
from library.training.sharding.rows import Rows, gather_flat

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

BLOCK = 256  # numbers that share a scale
_SCALES, _CODES = "absmax", "qmap"
_LARGE = 2**20  # numbers; what has fewer may be kept in 32 bits


def keep_blocks_whole(optimizer: Optimizer, all_rows: Sequence[Rows]) -> None:
    """Let 8-bit optimizers keep the averages of such weights in float32 whose parts end inside a block.

    Args:
        optimizer: Over the rows that are here, before its first step; also inside accelerate's wrapper.
        all_rows: Of each weight, in the order of the optimizer.

    Raises:
        OptionError: There are large weights among them, for which 8 bits were chosen.
    """
    settings: Any = getattr(bare_optimizer(optimizer), "args", None)  # of bitsandbytes
    if getattr(settings, "optim_bits", None) != 8:
        return
    for rows in all_rows:
        part = rows.length * rows.row_size
        if part < settings.min_8bit_size or _falls_into_blocks(rows):
            continue
        if part >= _LARGE:
            raise OptionError(
                f"--optimizer_type {type(bare_optimizer(optimizer)).__name__} cannot be sharded over {rows.number} "
                f"processes: a weight of {rows.shape} does not fall into parts of whole blocks of {BLOCK}. Use a power "
                "of two, or AdamW."
            )
        settings.min_8bit_size = part + 1


def _falls_into_blocks(rows: Rows) -> bool:
    return rows.number == 1 or rows.length * rows.row_size % BLOCK == 0


class _Entry(NamedTuple):
    """A tensor of a packed state: what it is called, its place in the list of tensors, and the weight it belongs to."""

    key: str
    place: int
    weight: int


def whole_optimizer_state(state: Mapping[str, Any], all_rows: Sequence[Rows], group: ProcessGroup) -> dict[str, Any]:
    """The state that one process would have; on the first process. All processes call this with their own.

    Args:
        state: Of `optimizer_state`.
        all_rows: Of each weight, in the order of the optimizer.
        group: Passes tensors in host memory.
    """
    tensors = list(state["tensors"])
    for entry in _entries(state):
        rows, own = all_rows[entry.weight], tensors[entry.place]
        whole = _gather(entry.key, own, rows, group)
        tensors[entry.place] = own if whole is None else whole
    return {**state, "tensors": tensors, "shapes": _shapes(state, [rows.shape for rows in all_rows])}


def own_optimizer_state(state: Mapping[str, Any], all_rows: Sequence[Rows]) -> dict[str, Any]:
    """What a process needs of `whole_optimizer_state`, as `optimizer_state` would have given it."""
    given = [tuple(shape) for group in state["shapes"] for shape in group]
    if given != [rows.shape for rows in all_rows]:
        return dict(state)  # `load_optimizer_state` tells what is wrong with it
    tensors, pairs = list(state["tensors"]), [list(pair) for pair in state["state"]]
    for pair in pairs:
        rows = all_rows[pair[0]["parameter"]] if _is_of_weight(pair) else None
        if rows is not None and not _falls_into_blocks(rows):
            pair[1] = {"dict": _widened(pair[1]["dict"], tensors)}
    for entry in _entries({"state": pairs}):
        tensors[entry.place] = _cut(entry.key, tensors[entry.place], all_rows[entry.weight])
    shapes = _shapes(state, [rows.own_shape for rows in all_rows])
    return {**state, "state": pairs, "tensors": tensors, "shapes": shapes}


def _widened(items: Sequence[Any], tensors: list[Tensor]) -> list[Any]:
    """Averages of a weight in float32, which hold the same numbers as those in 8 bits."""
    places = {key: item["tensor"] for key, item in items if isinstance(item, dict) and "tensor" in item}
    for key in [key for key in places if f"{_SCALES}{key.removeprefix('state')}" in places]:
        number = key.removeprefix("state")
        codes, scales = tensors[places[key]], tensors[places[f"{_SCALES}{number}"]]
        numbers = tensors[places[f"{_CODES}{number}"]][codes.flatten().long()]
        tensors[places[key]] = (numbers * scales.repeat_interleave(BLOCK)[: codes.numel()]).view(codes.shape)
    return [[key, item] for key, item in items if not str(key).startswith((_SCALES, _CODES))]


def _is_of_weight(pair: Sequence[Any]) -> bool:
    return isinstance(pair[0], dict) and "parameter" in pair[0]


def _entries(state: Mapping[str, Any]) -> Iterator[_Entry]:
    for key, value in state["state"]:
        for name, item in value["dict"] if _is_of_weight((key, value)) else ():
            if isinstance(item, dict) and "tensor" in item:
                yield _Entry(str(name), item["tensor"], key["parameter"])


def _gather(key: str, own: Tensor, rows: Rows, group: ProcessGroup) -> Tensor | None:
    if key.startswith(_SCALES):
        part, total = rows.length * rows.row_size, prod(rows.shape)
        return gather_flat(own, part // BLOCK, -(-total // BLOCK), group)
    return rows.whole(own, group) if tuple(own.shape) == rows.own_shape else None


def _cut(key: str, whole: Tensor, rows: Rows) -> Tensor:
    start, stop = (place * rows.row_size for place in (rows.place.start, rows.place.stop))
    if key.startswith(_SCALES):
        return whole[start // BLOCK : -(-stop // BLOCK)].clone()
    return rows.own(whole).clone() if tuple(whole.shape) == rows.shape else whole


def _shapes(state: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> list[list[list[int]]]:
    """Shapes of all weights, in the groups of the state."""
    ends = [0]
    for group in state["shapes"]:
        ends.append(ends[-1] + len(group))
    return [[list(shape) for shape in shapes[start:end]] for start, end in pairwise(ends)]


def whole_average_state(
    state: Mapping[str, Tensor], all_rows: Sequence[Rows], group: ProcessGroup
) -> dict[str, Tensor]:
    """Of `Ema.state`, which has an average for each weight behind what is said of all."""
    names = list(state)
    whole = {name: rows.whole(state[name], group) for name, rows in zip(_averages(names), all_rows, strict=True)}
    return {name: state[name] if whole.get(name) is None else whole[name] for name in names}  # type: ignore[misc]


def own_average_state(state: Mapping[str, Tensor], all_rows: Sequence[Rows]) -> dict[str, Tensor]:
    """What a process needs of `whole_average_state`."""
    averages = _averages(list(state))
    if [tuple(state[name].shape) for name in averages] != [rows.shape for rows in all_rows]:
        return dict(state)  # `Ema.load_state` tells what is wrong with it
    return {**state, **{name: rows.own(state[name]) for name, rows in zip(averages, all_rows, strict=True)}}


def _averages(names: Sequence[str]) -> list[str]:
    """Names of the averages, in the order of the weights."""
    return sorted((name for name in names if name.startswith("average.")), key=lambda name: int(name.split(".")[1]))
