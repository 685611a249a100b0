"""The files of a captioner: which are fetched, in which form its weights are read, and whether they are complete."""

from __future__ import annotations

import json
from pathlib import Path

from library.errors import CheckpointError
from library.preparing.hub_files import model_folder
from library.tensorfile import read_header

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_SAFE, _PICKLED = "*.safetensors", "*.bin"
_WHOLE = {_SAFE: "model.safetensors", _PICKLED: "pytorch_model.bin"}
_NUM_LISTED = 3


def folder_with_weights(name: str) -> Path:
    """The folder of a captioner with its weights, which are complete as far as their headers tell.

    Args:
        name: A folder, or owner/name.

    Raises:
        CheckpointError: Weights are missing or damaged.
    """
    folder = model_folder(name, "--model", (*SMALL_FILES, _SAFE))
    if not any(folder.glob(_SAFE)) and not Path(name).is_dir():
        folder = model_folder(name, "--model", (*SMALL_FILES, _PICKLED))
    form = _form_of(folder)
    if not (folder / _WHOLE[form]).is_file():
        _check_parts(folder, f"{_WHOLE[form]}.index.json")
    files = sorted(folder.glob(form))
    if not files:
        raise CheckpointError(
            f"--model: {folder} has no weights ({_SAFE} or pytorch_model.bin). Download them into it, or start once "
            "with a connection."
        )
    for file in files if form == _SAFE else ():
        read_header(file, "--model")
    return folder


def is_safe(folder: Path) -> bool:
    """Whether the weights of a folder are read from its safetensors files, which they are if there are any."""
    return _form_of(folder) == _SAFE


def _form_of(folder: Path) -> str:
    """In which form weights are read. Where files of both forms are named, those of the other need not be there."""
    return _PICKLED if any(folder.glob(_PICKLED)) and not any(folder.glob(_SAFE)) else _SAFE


def _check_parts(folder: Path, index: str) -> None:
    path = folder / index
    if not path.is_file():
        return
    try:
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"--model: {path} cannot be read ({reason}). Download it again.") from None
    absent = [name for name in parts if not (folder / name).is_file()]
    if absent:
        listed = ", ".join(absent[:_NUM_LISTED])
        raise CheckpointError(
            f"--model: {folder} lacks {len(absent)} of {len(parts)} files of its weights ({listed}). Download them."
        )
