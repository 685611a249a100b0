"""A captioner is tried on a small picture before its weights are read: do its files fit together, and its message?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.preparing.captioning.kinds import CaptionerKind
from library.preparing.captioning.models import Found
from library.preparing.captioning.processors import LOADING_FAULTS, first_line
from library.preparing.captioning.prompting import Inputs, encoder, unfit_template

if TYPE_CHECKING:
    from torch import Tensor

_SIDE = 256  # of the picture that is tried, in pixels


def tried(found: Found) -> Inputs:
    """The inputs of a small picture.

    Raises:
        CheckpointError: The files of the model do not fit together, or its message has no place for a picture.
    """
    from PIL import Image

    encode = encoder(found.kind, found.processor, found.prompt)
    try:
        inputs = encode([Image.new("RGB", (_SIDE, _SIDE))])
    except LOADING_FAULTS as error:
        if found.kind.prompting == "chat":
            raise unfit_template(found.kind, first_line(error)) from None
        raise CheckpointError(
            f"--model: the processor of {found.folder} takes no picture ({first_line(error)}). Download all files of "
            "the model again, or choose another."
        ) from None
    if found.kind.prompting == "chat":
        check_place(found.kind, inputs["input_ids"], found.config)
    return inputs


def check_place(kind: CaptionerKind, ids: Tensor, config: Any) -> None:
    """See whether a message has a place for its picture; older processors take one that has none.

    Args:
        kind: Of the model.
        ids: The tokens of the message. Shape [B, P].
        config: Of the model, which says what token stands for a picture.

    Raises:
        CheckpointError: It has none.
    """
    names = ("image_token_id", "image_token_index")
    places = [place for name in names if (place := getattr(config, name, None)) is not None]
    if places and not any(bool((ids == place).any()) for place in places):
        raise unfit_template(kind, "it has no place for the picture")
