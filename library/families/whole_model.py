"""Whole models as one file: what is planned of a part that was not trained, and writing what was planned.

Parts that were not trained are read from the model's files, tensor by tensor, while they are written. What the names
of a family's files are is told by its own export.py; folders for diffusers are in model_folder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.names import side_path
from library.checkpoint.state_folder import MODEL_INDEX
from library.checkpoint.tensor_stream import PlannedTensor, pickle_planned, write_planned, written_dtype
from library.checkpoint.weights import Part, StoredWeight, stored_weights
from library.errors import CheckpointError, OutputError
from library.tensorfile import torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Plan = dict[str, PlannedTensor]

FOR_SIDE_FILES = {"format": "pt"}  # metadata, as published encoders have it; older transformers ask for it


def plan_part(part: Part, dtype: torch.dtype | None, mmap: bool = True) -> Plan:
    """The tensors of a part under the names that it has for them; each is read when it is written.

    Args:
        part: Of one of the model's files.
        dtype: Of what is written; None keeps what each has.
        mmap: See `read_weights`.
    """
    plan = {}
    weights = cache(
        lambda: {weight.key: weight for weight in stored_weights(part, mmap=mmap)}
    )  # opened once, if at all
    for name, own in part.names.items():
        info = part.source.tensors[name]
        written = written_dtype(torch_dtype(info.dtype), dtype)
        plan[own] = PlannedTensor(info.shape, written, partial(_read_one, weights, name, written))
    return plan


def _read_one(weights: Callable[[], Mapping[str, StoredWeight]], name: str, dtype: torch.dtype) -> Tensor:
    return weights()[name].wide(dtype)


def converted(plan: Plan, convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Plan:
    """A plan under other names and in other shapes.

    Args:
        plan: What to convert.
        convert: Gives tensors under other names, in the same order, and does no more to them than to reshape them.
    """
    import torch

    outlines = convert({name: torch.empty(tensor.shape, device="meta") for name, tensor in plan.items()})
    pairs = zip(plan.values(), outlines.items(), strict=True)
    return {name: _reshaped(tensor, tuple(outline.shape)) for tensor, (name, outline) in pairs}


def _reshaped(tensor: PlannedTensor, shape: tuple[int, ...]) -> PlannedTensor:
    if tensor.shape == shape:
        return tensor
    return replace(tensor, shape=shape, fetch=lambda: tensor.fetch().detach().reshape(shape))


def write_whole_model(
    path: Path,
    *,
    layout: str,
    parts: Iterable[Part],
    single_file: Callable[[], Plan],
    side_files: Callable[[], Mapping[str, Plan]],
    write_folder: Callable[[Path], None],
    metadata: Mapping[str, str] | None,
) -> list[Path]:
    """Write a whole model. What belongs to it comes first, the model itself last.

    Args:
        path: A file; a folder for the layout "diffusers".
        layout: "safetensors", "ckpt" or "diffusers".
        parts: Of the files that the training reads.
        single_file: Plans the one file.
        side_files: Plans files beside it, {encoder: what goes into its file}.
        write_folder: Writes the folder.
        metadata: For the header of the file; a pickle has none.

    Returns:
        What was written.

    Raises:
        OutputError: Something cannot be written, or the files of the model cannot be read any more.
    """
    sources = tuple(parts)
    with as_output_error(path):
        check_places(sources, [path], layout=layout)
        if layout == "diffusers":
            write_folder(path)
            return [path]
        beside = {side_path(path, name): plan for name, plan in side_files().items()}
        check_places(sources, beside, layout=layout)
        for place, plan in beside.items():
            write_planned(place, plan, FOR_SIDE_FILES)
        _write_file(path, single_file(), metadata, is_pickle=layout == "ckpt")
    return [path, *beside]


def _write_file(path: Path, plan: Plan, metadata: Mapping[str, str] | None, *, is_pickle: bool) -> None:
    if is_pickle:
        pickle_planned(path, plan)
    else:
        write_planned(path, plan, metadata)


def check_places(parts: Iterable[Part], paths: Iterable[Path], *, layout: str) -> None:
    """Refuse to put a model where its own sources lie, or something that is no model; see library/families/base.py.

    Raises:
        OutputError: One of the paths is such a place.
    """
    sources = {header.path.resolve() for part in parts for header in part.source.headers}
    held = sources.union(*(source.parents for source in sources))
    for path in paths:
        is_model = (path / MODEL_INDEX).is_file() if layout == "diffusers" else path.is_file()
        if path.resolve() in held:
            reason = "is of the model that this training reads"
        elif path.exists() and not is_model:
            reason = "is something else than a model in this layout"
        else:
            continue
        raise OutputError(f"{path} {reason}, and is not replaced. Choose another --output_name or --output_dir.")


@contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """A file that was there at the start and is not any more costs this save, not the run."""
    try:
        yield
    except CheckpointError as error:
        raise OutputError(f"{path}: cannot be written, for a part of the model cannot be read: {error}") from error
