"""What CLIP sees in a guiding picture, in the place of the pooled text of SDXL.

The pooled text is a vector of CLIP's text encoder, and the image encoder of the same CLIP gives vectors of the same
space, so that one can stand for the other. Source: Radford et al. 2021, arXiv:2103.00020; Stability AI's "revision".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from library.errors import CheckpointError
from library.families.base import Conditioning

if TYPE_CHECKING:
    from PIL.Image import Image

_OPTION = "--clip_vision_model"
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained with
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def check_clip_vision(folder: Path) -> None:
    """See, without reading weights, that there may be an image encoder of CLIP.

    Raises:
        CheckpointError: There is none.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{_OPTION}: {folder} is no folder of a transformers model: it has no config.json. Download "
            "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k from the Hugging Face hub and give its folder."
        )


def load_clip_vision(folder: Path, width: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The image encoder, frozen.

    Args:
        folder: Of transformers.
        width: Of the pooled text.
        dtype: Of its weights.
        device: That it runs on.

    Raises:
        CheckpointError: It cannot be read, or sees in another space.
    """
    from transformers import CLIPVisionModelWithProjection

    check_clip_vision(folder)
    try:
        model: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
    except Exception as error:
        raise CheckpointError(
            f"{_OPTION}: {folder} cannot be read ({error}). Give the folder of a CLIP model."
        ) from error
    found = model.config.projection_dim
    if found != width:
        raise CheckpointError(
            f"{_OPTION}: {folder} gives vectors of {found} numbers, and the pooled text of the model has {width}. Give "
            "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."
        )
    vision: nn.Module = model.to(device).eval().requires_grad_(False)
    return vision


@torch.no_grad()
def seen(vision: Any, pictures: Sequence[Image]) -> Tensor:
    """What CLIP sees, one vector for each picture. Shape [B, P], float32."""
    weight = next(vision.parameters())
    images = torch.stack([_prepared(picture, vision.config.image_size) for picture in pictures])
    embeds: Tensor = vision(images.to(weight.device, weight.dtype)).image_embeds
    return embeds.float()


def with_seen(conditioning: Conditioning, vectors: Tensor, strength: float) -> Conditioning:
    """Conditioning whose pooled text goes a share of the way towards what is seen. Shape of the vectors [B, P]."""
    pooled = conditioning.pooled
    return replace(conditioning, pooled=torch.lerp(pooled.float(), vectors, strength).to(pooled.dtype))


def _prepared(picture: Image, side: int) -> Tensor:
    """The middle square of a picture, normalised. Shape [3, side, side]."""
    import numpy
    from PIL import Image as pillow
    from PIL import ImageOps

    from library.data.pixels.colours import to_rgb

    square = ImageOps.fit(to_rgb(picture), (side, side), pillow.Resampling.BICUBIC)
    pixels = torch.from_numpy(numpy.array(square)).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (pixels - mean) / deviation
