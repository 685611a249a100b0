"""The state of a run in a folder: what it takes to go on as if nothing had happened.

`weights.safetensors` has what trains, in the precision it trains in; `ema.safetensors` its average; `training.pt` the
optimizer, the schedule and the loss scaling; `train_state.json` all else: the step, the seed, the history of losses,
what has been saved, and what the run trains (`run_identity.py`). Random numbers need no place: they are keyed by seed,
epoch and sample.
"""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.names import STATE
from library.checkpoint.state_folder import StateFolder, glance, open_folder, write_folder
from library.checkpoint.tensor_stream import plan_tensor, write_planned
from library.errors import CheckpointError, OptionError
from library.log import get_logger
from library.tensorfile import read_header, read_tensors, save_with_torch, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

logger = get_logger(__name__)

AUTO = "auto"
WEIGHTS, EMA, TRAINING, PROGRESS = "weights.safetensors", "ema.safetensors", "training.pt", "train_state.json"


@dataclass(frozen=True)
class RunState:
    """What a state folder holds, read into the memory of the host.

    Attributes:
        weights: {name: tensor} of everything that trains.
        ema: Averages, or None where none are kept.
        training: States of "optimizer", "schedule" and, with loss scaling, "scaler".
        progress: JSON.
    """

    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None
    training: Mapping[str, Any]
    progress: Mapping[str, Any]


def write_state(path: Path, state: RunState) -> None:
    """Write a state so that the folder is there as a whole or not at all.

    Raises:
        OutputError: It cannot be written; what was there before still is.
    """
    weights = {name: plan_tensor(tensor) for name, tensor in state.weights.items()}
    writers: dict[str, Callable[[Path], None]] = {WEIGHTS: lambda place: write_planned(place, weights)}
    if state.ema is not None:
        averages = state.ema
        writers[EMA] = lambda place: write_tensors(place, averages)
    writers[TRAINING] = lambda place: save_with_torch(dict(state.training), place)
    writers[PROGRESS] = lambda place: _write_json(place, state.progress)
    about = {name: state.progress[name] for name in ("current_epoch", "current_step", "seed")}
    about["saved_at"] = time.time()
    write_folder(path, writers, about, _num_bytes(state))


def read_state(folder: Path, *, mmap: bool = False) -> RunState:
    """Read a folder that `open_folder` has checked. Nothing of it is executed.

    Args:
        folder: The state.
        mmap: Map its files: of what is not used nothing is read, and processes share what is.

    Raises:
        CheckpointError: A file cannot be read, or would have to be executed.
    """
    import torch

    try:
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True, mmap=mmap)
        progress = read_progress(folder)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"--resume: {folder / TRAINING} holds what would be executed, and is not read. Continue from another state."
        ) from None
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise CheckpointError(f"--resume: {folder} cannot be read ({error}). Continue from another state.") from error
    has_ema = (folder / EMA).exists()
    ema = _read(folder / EMA, mmap) if has_ema else None
    return RunState(_read(folder / WEIGHTS, mmap), ema, training, progress)


def read_progress(folder: Path) -> dict[str, Any]:
    """`train_state.json` of a state.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--resume: {folder / PROGRESS} cannot be read ({error}).") from None
    return content


def find_state(resume: str, output_dir: Path, output_name: str | None) -> StateFolder | None:
    """The state that `--resume` means.

    Args:
        resume: A folder, or "auto" for the newest complete state of this output name.
        output_dir: Where "auto" looks.
        output_name: Of the run.

    Returns:
        None where "auto" finds none.

    Raises:
        CheckpointError: The folder that is named is missing, incomplete or damaged.
    """
    if resume != AUTO:
        return open_folder(Path(resume))
    for path in states_of(output_dir, output_name):
        try:
            return open_folder(path)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    return None


def check_resume(resume: str | None) -> None:
    """Refuse a `--resume` that names nothing, before anything is computed.

    Raises:
        OptionError: There is no such folder.
    """
    if resume is None or resume == AUTO or Path(resume).is_dir():
        return
    raise OptionError(
        f"--resume: {resume} is not a folder. Give a state folder, or auto for the newest in --output_dir."
    )


def states_of(folder: Path, output_name: str | None) -> list[Path]:
    """State folders of an output name that have a manifest, the newest first."""
    stem = r"(epoch-\d{6,}|at-step\d{8,}|last)"
    if output_name:
        stem = re.escape(output_name) + r"(-step\d{8,}|-\d{6,})?"
    name = re.compile(stem + re.escape(STATE))
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not name.fullmatch(path.name):
            continue
        about = glance(path)
        if about is None:
            logger.warning("passed over: %s is not complete.", path)
        else:
            found.append((float(about.get("saved_at", 0)), int(about.get("current_step", 0)), path))
    return [path for *_, path in sorted(found, reverse=True)]


def _read(path: Path, mmap: bool) -> dict[str, Tensor]:
    return read_tensors(read_header(path, "--resume"), mmap=mmap)


def _write_json(place: Path, content: Mapping[str, Any]) -> None:
    place.write_text(json.dumps(content), encoding="utf-8")


def _num_bytes(state: RunState) -> int:
    """Of all tensors in a state; the rest is small."""
    tensors = [*state.weights.values(), *(state.ema or {}).values(), *_tensors_in(state.training)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors_in(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors_in(item)]
    return [value] if hasattr(value, "element_size") else []
