"""Stable Diffusion 1.x, 2.x and SDXL caches of sd-scripts, turned into what our own cache entries hold.

Latents: `latents`, `latents_flipped` before scaling, `original_size`, `crop_ltrb`, `alpha_mask` in pixels, of one
bucket. Older versions named the archive like the picture; where there is such a one, the other program takes it.
Texts, of SDXL only: `hidden_state1` of CLIP-L, `hidden_state2` and `pool2` of CLIP-G.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.cache.entry_file import DamagedFile
from library.data.cache.npz import read_arrays
from library.families.npz_latents import latent_ending, read_picture
from library.families.unet.fitted_box import fitted_box
from library.families.unet.kinds import LATENT_CHANNELS, facts_of
from library.models.token_chunks import INNER
from library.records import Size

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

_ARRAYS = {"clip_l": {"clip_l": "hidden_state1"}, "clip_g": {"clip_g": "hidden_state2", "clip_g_pooled": "pool2"}}


@dataclass(frozen=True)
class UnetNpzReader:
    """Reads archives as a run with these settings would have written them.

    Attributes:
        family: "sd" or "sdxl".
        encoders: Those whose states are cached.
        widths: Of their states, by name.
        num_chunks: Rows of 77 tokens that a caption may fill.
        is_weighted: Captions weigh words. Archives do not say whether theirs did.
        dtype: Of the tensors that are given.
    """

    family: str
    encoders: tuple[str, ...]
    widths: Mapping[str, int]
    num_chunks: int
    is_weighted: bool
    dtype: torch.dtype

    @property
    def text_ending(self) -> str | None:
        """There are none of SD 1.x and 2.x."""
        return facts_of(self.family).text_archive

    def latent_endings(self, image: Size) -> tuple[str, ...]:
        """Of file names."""
        return (".npz", latent_ending(image, self.family))

    def latents(self, path: Path, names: Sequence[str], *, bucket: Size, image: Size) -> dict[str, Tensor]:
        """Scaled latents [4, h, w] in `dtype`; "mask" [1, h, w] in float16.

        Raises:
            DamagedFile: Something is missing or does not fit.
        """
        picture = read_picture(
            path, names, bucket=bucket, image=image, channels=LATENT_CHANNELS, others={"crop_ltrb": (4,)}
        )
        _check_crop(picture.others["crop_ltrb"], image, bucket)
        return picture.scaled(facts_of(self.family).vae_scale, 0.0, self.dtype)

    def texts(self, path: Path) -> dict[str, Tensor]:
        """States of the cached encoders in `dtype`: "clip_l" and "clip_g" [75 num_chunks + 2, width], "clip_g_pooled".

        Raises:
            DamagedFile: Something is missing, or was made with other settings.
        """
        import torch

        if self.is_weighted:
            raise DamagedFile("it does not say whether it was made with --weighted_captions")
        rows = self.num_chunks * INNER + 2
        sources = {ours: (theirs, name) for name in self.encoders for ours, theirs in _ARRAYS[name].items()}
        arrays = read_arrays(
            path,
            {
                theirs: (self.widths[name],) if ours.endswith("_pooled") else (rows, self.widths[name])
                for ours, (theirs, name) in sources.items()
            },
        )
        return {ours: torch.from_numpy(arrays[theirs]).to(self.dtype) for ours, (theirs, _) in sources.items()}


def _check_crop(found: np.ndarray, image: Size, bucket: Size) -> None:
    """The box says nothing of the pixels, which were cut otherwise; but another one was another bucket."""
    if any(abs(a - b) >= 1 for a, b in zip(found.tolist(), fitted_box(image, bucket), strict=True)):
        raise DamagedFile("it was made for another bucket")
