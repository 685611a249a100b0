"""What a U-Net model says of itself: what it predicts, and what its schedule ends in.

Single files say it by empty tensors (SDXL), or in their header by ModelSpec and by what the training wrote down;
folders by their scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from library.errors import CheckpointError
from library.families.unet.parts import MODEL_OPTION

VELOCITY, NOISE, ZERO_TERMINAL = "v_pred", "epsilon", "ztsnr"
TENSORS = (VELOCITY, ZERO_TERMINAL)
"""Marks that are the names of empty tensors in files of SDXL."""
FLAGS = {VELOCITY: "--v_parameterization", ZERO_TERMINAL: "--zero_terminal_snr"}
"""{mark: the option that says it}"""
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


def folder_marks(folder: Path) -> frozenset[str]:
    """Marks of a diffusers folder.

    Raises:
        CheckpointError: The scheduler's settings cannot be read.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.exists():
        return frozenset()
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        predicted = settings.get("prediction_type")
        is_zero_terminal = bool(settings.get("rescale_betas_zero_snr"))
    except (OSError, ValueError, AttributeError):
        raise CheckpointError(f"{MODEL_OPTION}: {path} is damaged. Download or copy it again.") from None
    said = {VELOCITY: predicted == "v_prediction", ZERO_TERMINAL: is_zero_terminal, NOISE: predicted == "epsilon"}
    return frozenset(mark for mark, is_said in said.items() if is_said)


def header_marks(marks: Collection[str]) -> dict[str, str]:
    """The keys of a file's header that say it."""
    said = {VELOCITY: {_PREDICTION: "v"}, NOISE: {_PREDICTION: "epsilon"}, ZERO_TERMINAL: {_TRAINED_ZERO: "True"}}
    return {key: value for mark, keys in said.items() if mark in marks for key, value in keys.items()}
