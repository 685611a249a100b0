"""Stable Diffusion 3 caches of sd-scripts, turned into what our own cache entries hold.

Latents: `latents_{h}x{w}`, `latents_flipped_{h}x{w}` before shift and scale, `alpha_mask_{h}x{w}` in pixels. Texts:
`lg_out` with CLIP-L and CLIP-G side by side, `lg_pooled` likewise, `t5_out`, one mask for each encoder, and whether
the encoders were given the masks. Rows that a mask hides are stored there; ours are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.cache.entry_file import DamagedFile
from library.data.cache.npz import read_arrays
from library.families.npz_latents import CELLS, latent_ending, read_picture
from library.models.tokenizers import CLIP_LENGTH
from library.records import Size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHANNELS = 16


@dataclass(frozen=True)
class Sd3NpzReader:
    """Reads archives as a run with these settings would have written them.

    Attributes:
        clip_widths: Widths of both CLIPs, by name; both are needed to take `lg_out` apart.
        encoders: Those whose states are cached.
        t5_length: Tokens that T5 reads.
        t5_width: Of T5's states.
        dtype: Of the tensors that are given.
    """

    clip_widths: Mapping[str, int]
    encoders: tuple[str, ...]
    t5_length: int
    t5_width: int
    apply_lg_attn_mask: bool
    apply_t5_attn_mask: bool
    dtype: torch.dtype
    text_ending: str = "_sd3_te.npz"

    def latent_endings(self, image: Size) -> tuple[str, ...]:
        """Of file names."""
        return (latent_ending(image, "sd3"),)

    def latents(self, path: Path, names: Sequence[str], *, bucket: Size, image: Size) -> dict[str, Tensor]:
        """Scaled latents [16, h, w] in `dtype`; "mask" [1, h, w] in float16.

        Raises:
            DamagedFile: Something is missing or does not fit.
        """
        from library.models.vae import SD3_SCALE, SD3_SHIFT

        ending = f"_{bucket.height // CELLS}x{bucket.width // CELLS}"
        picture = read_picture(path, names, bucket=bucket, image=image, channels=CHANNELS, ending=ending)
        return picture.scaled(SD3_SCALE, SD3_SHIFT, self.dtype)

    def texts(self, path: Path) -> dict[str, Tensor]:
        """States of the cached encoders in `dtype`: "clip_l" [77, width], "clip_l_pooled" [width], "t5xxl" [T, D].

        Raises:
            DamagedFile: Something is missing, or was made with other settings.
        """
        clips = [name for name in ("clip_l", "clip_g") if name in self.encoders]
        made = self._clip_states(path, clips) if clips else {}
        if "t5xxl" in self.encoders:
            made["t5xxl"] = self._t5_states(path)
        return {name: tensor.to(self.dtype) for name, tensor in made.items()}

    def _clip_states(self, path: Path, names: Sequence[str]) -> dict[str, Tensor]:
        width = sum(self.clip_widths.values())
        masks: dict[str, tuple[int, ...] | None] = {f"{name}_attn_mask": (CLIP_LENGTH,) for name in names}
        arrays = read_arrays(
            path, {"lg_out": (CLIP_LENGTH, width), "lg_pooled": (width,), "apply_lg_attn_mask": (), **masks}
        )
        _check_flag("apply_lg_attn_mask", bool(arrays["apply_lg_attn_mask"]), self.apply_lg_attn_mask)
        made, start = {}, 0
        for name in ("clip_l", "clip_g"):
            columns = slice(start, start := start + self.clip_widths[name])
            if name in names:
                mask = arrays[f"{name}_attn_mask"] if self.apply_lg_attn_mask else None
                made[name] = _states(arrays["lg_out"][:, columns], mask)
                made[f"{name}_pooled"] = _states(arrays["lg_pooled"][columns], None)
        return made

    def _t5_states(self, path: Path) -> Tensor:
        arrays = read_arrays(path, {"t5_out": None, "t5_attn_mask": (self.t5_length,), "apply_t5_attn_mask": ()})
        states = arrays["t5_out"]
        if states.ndim != 2 or len(states) != self.t5_length:
            raise DamagedFile(f"t5_out is not {self.t5_length} tokens long")
        if states.shape[1] != self.t5_width:
            raise DamagedFile(f"t5_out is {states.shape[1]} wide, not {self.t5_width}: another T5 made it")
        _check_flag("apply_t5_attn_mask", bool(arrays["apply_t5_attn_mask"]), self.apply_t5_attn_mask)
        return _states(states, arrays["t5_attn_mask"] if self.apply_t5_attn_mask else None)


def _check_flag(name: str, found: bool, wanted: bool) -> None:
    if found != wanted:
        raise DamagedFile(f"it was made {'with' if found else 'without'} --{name}")


def _states(array: object, mask: object | None) -> Tensor:
    """Token states of their own memory, with zeros where the mask says so."""
    import torch

    states = torch.as_tensor(array).clone()
    return states if mask is None else states.masked_fill(torch.as_tensor(mask)[:, None] == 0, 0)
