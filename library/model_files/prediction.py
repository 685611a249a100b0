"""What a U-Net model that is written predicts: what the user says, what the model says, or a guess, which is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.families.unet.marks import NOISE, VELOCITY
from library.families.unet.telltale import looks_like_velocity
from library.log import get_logger

if TYPE_CHECKING:
    from library.families.unet.checkpoint import UnetFiles

_WORDS = {VELOCITY: "the velocity", NOISE: "noise"}

logger = get_logger(__name__)


def prediction_mark(files: UnetFiles, asked: str | None) -> tuple[str, bool]:
    """The mark of what a model predicts, and whether it is known.

    Args:
        files: The model.
        asked: "epsilon" or "v_prediction" where the user says it.

    Raises:
        CheckpointError: The weights that tell it cannot be read.
    """
    own = next((mark for mark in _WORDS if mark in files.marks), None)
    if asked is not None:
        wanted = VELOCITY if asked == "v_prediction" else NOISE
        if own not in (None, wanted):
            logger.warning(
                "%s says that it predicts %s. With --prediction_type %s the new model says: %s.",
                *(files.path, _WORDS[str(own)], asked, _WORDS[wanted]),
            )
        return wanted, True
    if own is not None:
        return own, True
    guess = VELOCITY if looks_like_velocity(files) else NOISE
    logger.info(
        "%s does not say what it predicts%s, so %s is taken. If that is wrong, give --prediction_type %s.",
        files.path,
        ", and one weight is compared" if files.kind == "sd2" else "",
        *((_WORDS[guess], "epsilon") if guess == VELOCITY else (_WORDS[guess], "v_prediction")),
    )
    return guess, False
