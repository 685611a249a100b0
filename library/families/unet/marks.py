"""What a U-Net model says of itself: what it predicts, and what its schedule ends in.

Single files say it by empty tensors (SDXL), or in their header by ModelSpec and by what the training wrote down;
folders by their scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from library.errors import CheckpointError
from library.families.unet.parts import MODEL_OPTION

VELOCITY, NOISE, ZERO_TERMINAL = "v_pred", "epsilon", "ztsnr"
TENSORS = (VELOCITY, ZERO_TERMINAL)
"""Marks that are the names of empty tensors in files of SDXL."""
FLAGS = {VELOCITY: "--v_parameterization", ZERO_TERMINAL: "--zero_terminal_snr"}
"""{mark: the option that says it}"""
SCHEDULER = Path("scheduler", "scheduler_config.json")
"""In a diffusers folder."""
_PREDICTION, _TRAINED_VELOCITY, _TRAINED_ZERO = (
    "modelspec.prediction_type",
    "ss_v_parameterization",
    "ss_zero_terminal_snr",
)


def file_marks(tensors: Collection[str], metadata: Mapping[str, str]) -> frozenset[str]:
    """Marks of a file; see `UnetFiles`. A tensor goes before the header.

    Args:
        tensors: Names of its tensors.
        metadata: Of its header.
    """
    marks = {mark for mark in TENSORS if mark in tensors}
    trained = {"True": VELOCITY, "False": NOISE}.get(metadata.get(_TRAINED_VELOCITY, ""))
    said = {"v": VELOCITY, "v_prediction": VELOCITY, "epsilon": NOISE}.get(metadata.get(_PREDICTION, ""), trained)
    if said is not None and VELOCITY not in marks:
        marks.add(said)
    if metadata.get(_TRAINED_ZERO) == "True":
        marks.add(ZERO_TERMINAL)
    return frozenset(marks)


def folder_scheduler(folder: Path) -> dict[str, Any]:
    """Settings of the scheduler of a diffusers folder; empty where it has none.

    Raises:
        CheckpointError: They cannot be read.
    """
    path = folder / SCHEDULER
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{MODEL_OPTION}: {path} is damaged. Download or copy it again.")
    return settings


def folder_marks(settings: Mapping[str, Any]) -> frozenset[str]:
    """Marks of a diffusers folder, from the settings of its scheduler."""
    predicted, is_zero_terminal = settings.get("prediction_type"), bool(settings.get("rescale_betas_zero_snr"))
    said = {VELOCITY: predicted == "v_prediction", ZERO_TERMINAL: is_zero_terminal, NOISE: predicted == "epsilon"}
    return frozenset(mark for mark, is_said in said.items() if is_said)


def header_marks(marks: Collection[str]) -> dict[str, str]:
    """The keys of a file's header that say it."""
    said = {VELOCITY: {_PREDICTION: "v"}, NOISE: {_PREDICTION: "epsilon"}, ZERO_TERMINAL: {_TRAINED_ZERO: "True"}}
    return {key: value for mark, keys in said.items() if mark in marks for key, value in keys.items()}
