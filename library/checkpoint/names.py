"""Names of saved files and state folders, and which older one a new save replaces."""

from __future__ import annotations

from pathlib import Path

STATE = "-state"  # takes the place of the extension in the name of a state folder


def epoch_name(output_name: str | None, extension: str, epoch: int) -> str:
    """Name of what is saved after an epoch (counted from 1), for instance "name-000002.safetensors".

    Args:
        output_name: Of the run; None gives "epoch-000002.safetensors".
        extension: With its dot; `STATE` for a state folder, "" for a folder of weights.
        epoch: The epoch that has ended.
    """
    return f"{output_name or 'epoch'}-{epoch:06d}{extension}"


def step_name(output_name: str | None, extension: str, step: int) -> str:
    """Name of what is saved after an optimizer step, for instance "name-step00000100.safetensors"."""
    return f"{output_name or 'at'}-step{step:08d}{extension}"


def last_name(output_name: str | None, extension: str) -> str:
    """Name of what is saved at the end, for instance "name.safetensors"."""
    return f"{output_name or 'last'}{extension}"


def side_path(model: Path, part: str) -> Path:
    """Where a part of a model goes that is not inside its file, for instance "name_part.safetensors"."""
    return model.with_name(f"{model.stem}_{part}.safetensors")


def epoch_to_remove(epoch: int, every: int, keep_last: int | None) -> int | None:
    """The epoch whose save goes when `epoch` is saved, or None.

    Args:
        epoch: Just saved.
        every: Epochs between saves.
        keep_last: How many saves stay; None keeps all.
    """
    if keep_last is None:
        return None
    old = epoch - every * keep_last
    return old if old >= 0 else None


def step_to_remove(step: int, every: int, keep_last: int | None) -> int | None:
    """The step whose save goes when `step` is saved, or None.

    Args:
        step: Just saved.
        every: Steps between saves.
        keep_last: Saves of the last so many steps stay (steps, not saves); None keeps all.
    """
    if keep_last is None:
        return None
    old = step - keep_last - 1
    return old - old % every if old >= 0 else None
