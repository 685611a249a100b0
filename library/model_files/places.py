"""Where a model may be written, and how options are called in errors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from library.checkpoint.state_folder import MODEL_INDEX
from library.errors import CheckpointError, OptionError
from library.families.detect import LORA, SD1, SD2, SD3, SDXL

_MODEL_OPTION = "--pretrained_model_name_or_path"
_NO_VAE, _NO_VAE_HERE = "Give one with --vae.", "Use a complete model file, or a diffusers folder."


@contextmanager
def naming(option: str, **others: str) -> Iterator[None]:
    """Errors about the base model of a training, as they are told of a tool's option.

    Args:
        option: As the user types it.
        others: {another option of a training: the tool's}.
    """
    try:
        yield
    except CheckpointError as error:
        text = str(error).replace(_MODEL_OPTION, option).replace(_NO_VAE, _NO_VAE_HERE)
        for name, own in others.items():
            text = text.replace(f"--{name}", own)
        for advice in {kind.advice for kind in (SD1, SD2, SDXL, SD3, LORA)}:  # which is for trainings
            text = text.replace(f" {advice}", "")
        raise CheckpointError(text) from error


def check_file(target: Path, sources: Iterable[Path], option: str) -> None:
    """Refuse a file to write that is read too, or that lies where a folder is.

    Args:
        target: The file to write.
        sources: All files that are read.
        option: Names the target.

    Raises:
        OptionError: It cannot be written there.
    """
    if target.is_dir():
        raise OptionError(f"{option} {target} is a folder. Give the name of the file to write.")
    if any(_is_same(target, source) for source in sources):
        raise OptionError(f"{option} {target} is also read. Give another name for the file to write.")
    _check_parent(target, option)


def check_folder(target: Path, sources: Iterable[Path], option: str) -> None:
    """Refuse a folder to write that has anything in it: it would be replaced as a whole.

    Args:
        target: The folder to write.
        sources: All files that are read.
        option: Names the target.

    Raises:
        OptionError: It cannot be written there.
    """
    if target.exists() and not target.is_dir():
        raise OptionError(f"{option} {target} is a file. Give the name of a folder, or one that ends in .safetensors.")
    if any(target.resolve() in source.resolve().parents for source in sources):
        raise OptionError(f"{option} {target} has the model inside that is read. Give another folder.")
    if target.is_dir() and any(target.iterdir()):
        inside = "a model" if (target / MODEL_INDEX).is_file() else "files"
        raise OptionError(f"{option} {target} has {inside} inside already. Remove it, or give another folder.")
    _check_parent(target, option)


def _check_parent(target: Path, option: str) -> None:
    """The nearest folder that is there can be written to. A model of many gigabytes is not read first."""
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OptionError(f"{option} {target}: {parent} is a file, not a folder. Check the path.")
    if not os.access(parent, os.W_OK):
        raise OptionError(f"{option} {target}: nothing may be written to {parent}. Choose another folder.")


def _is_same(target: Path, source: Path) -> bool:
    return target.resolve() == source.resolve() or (target.exists() and source.exists() and target.samefile(source))
