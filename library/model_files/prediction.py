"""What a U-Net model predicts: noise ("epsilon") or the velocity.

Folders say it by their scheduler, some files by an empty tensor or by ModelSpec. Files of Stable Diffusion 2.x say
nothing; the spread of one bias tells its two published kinds apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.log import get_logger

if TYPE_CHECKING:
    from library.families.unet.checkpoint import UnetFiles

_TELLTALE = (
    "output_blocks.11.1.transformer_blocks.0.norm1.bias",
    "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias",
)
_WIDEST_OF_NOISE = 0.09  # deviation of that bias; above it the model predicts the velocity, as ComfyUI decides too

logger = get_logger(__name__)


def predicts_velocity(files: UnetFiles, asked: str | None) -> bool:
    """Whether a model predicts the velocity.

    Args:
        files: The model.
        asked: "epsilon" or "v_prediction" where the user says it.

    Raises:
        CheckpointError: The weights that tell it cannot be read.
    """
    if asked is not None:
        return asked == "v_prediction"
    if files.marks & {"v_pred", "epsilon"}:
        return "v_pred" in files.marks
    said = files.unet.header.metadata.get("modelspec.prediction_type")
    if said in ("v", "epsilon"):
        return said == "v"
    return files.kind == "sd2" and _looks_like_velocity(files)


def _looks_like_velocity(files: UnetFiles) -> bool:
    import torch

    from library.checkpoint.weights import stored_weights

    bias = next(weight for weight in stored_weights(files.unet) if weight.name in _TELLTALE).wide(torch.float32)
    is_velocity = float(bias.std()) > _WIDEST_OF_NOISE
    logger.info(
        "%s does not say what it predicts; its weights look like a model of %s. If that is wrong, give "
        "--prediction_type %s.",
        files.unet.path,
        *(("the velocity", "epsilon") if is_velocity else ("noise", "v_prediction")),
    )
    return is_velocity
