"""What a model of Stable Diffusion 2.x predicts whose file says nothing: the spread of one bias tells its two published
kinds apart, as ComfyUI decides too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.families.unet.marks import NOISE, VELOCITY

if TYPE_CHECKING:
    from library.families.unet.checkpoint import UnetFiles

_TELLTALE = (
    "output_blocks.11.1.transformer_blocks.0.norm1.bias",
    "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias",
)
_WIDEST_OF_NOISE = 0.09  # deviation of that bias; above it the model predicts the velocity


def is_velocity_unsaid(files: UnetFiles) -> bool:
    """Whether a model does not say what it predicts, and its weights look like the velocity.

    Raises:
        CheckpointError: The weights cannot be read.
    """
    return not files.marks & {VELOCITY, NOISE} and looks_like_velocity(files)


def looks_like_velocity(files: UnetFiles) -> bool:
    """Whether the weights of a model are those of one that predicts the velocity; of other kinds they never tell.

    Raises:
        CheckpointError: The weights cannot be read.
    """
    if files.kind != "sd2":
        return False
    import torch

    from library.checkpoint.weights import stored_weights

    found = (weight for weight in stored_weights(files.unet) if weight.name in _TELLTALE)
    bias = next(found, None)
    return bias is not None and float(bias.wide(torch.float32).std()) > _WIDEST_OF_NOISE
