"""Latents in caches of sd-scripts, as far as all families have them alike: planes, the picture's size, transparency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from library.data.cache.entry import MASK
from library.data.cache.entry_file import DamagedFile
from library.data.cache.npz import read_arrays
from library.records import Size

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CELLS = 8  # pixels for each latent cell


def latent_ending(image: Size, family: str) -> str:
    """What follows the stem of a picture of this size in the name of its archive."""
    return f"_{image.width:04d}x{image.height:04d}_{family}.npz"


@dataclass(frozen=True)
class NpzPicture:
    """What an archive has of a picture.

    Attributes:
        planes: Latents before shift and scale, by name. Shape [C, h, w], float32.
        mask: The transparency at latent size. Shape [1, h, w], float16; None where it is not wanted.
        others: The other arrays that were asked for, by name without ending.
    """

    planes: Mapping[str, Tensor]
    mask: Tensor | None
    others: Mapping[str, np.ndarray]

    def scaled(self, scale: float, shift: float, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors of a cache entry: scaled latents, and the mask."""
        made = {name: ((plane - shift) * scale).to(dtype) for name, plane in self.planes.items()}
        return made if self.mask is None else {**made, MASK: self.mask}


def read_picture(
    path: Path,
    names: Sequence[str],
    *,
    bucket: Size,
    image: Size,
    channels: int,
    ending: str = "",
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> NpzPicture:
    """Read the arrays of a picture.

    Args:
        path: The archive.
        names: Of the tensors of a cache entry.
        bucket: Size of the training picture.
        image: Of the stored one.
        channels: Of the latents.
        ending: Of the names of all arrays.
        others: What else must be there: {name without ending: shape}.

    Raises:
        DamagedFile: Something is missing or does not fit.
    """
    plane_names = [name for name in names if name != MASK]
    shapes: dict[str, tuple[int, ...]] = {
        **{name: (channels, bucket.height // CELLS, bucket.width // CELLS) for name in plane_names},
        "original_size": (2,),
        **({"alpha_mask": (bucket.height, bucket.width)} if MASK in names else {}),
        **(others or {}),
    }
    arrays = read_arrays(path, {f"{name}{ending}": shape for name, shape in shapes.items()})
    found = {name: arrays[f"{name}{ending}"] for name in shapes}
    if tuple(map(int, found["original_size"])) != tuple(image):
        raise DamagedFile("it was made from a picture of another size")
    planes = {name: torch.from_numpy(found[name]).float() for name in plane_names}
    mask = _at_latent_size(found["alpha_mask"]) if MASK in names else None
    return NpzPicture(planes, mask, {name: found[name] for name in others or {}})


def _at_latent_size(alpha: np.ndarray) -> Tensor:
    mask = torch.from_numpy(alpha).float().clamp(0, 1)
    return torch.nn.functional.avg_pool2d(mask[None], CELLS).to(torch.float16)
