"""The text of U-Net models (SD 1.x, SD 2.x, SDXL) for a training: tokens, what encoders say, and caches of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.families.unet.settings import UnetSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.families.unet.checkpoint import UnetFiles
    from library.families.unet.npz_cache import UnetNpzReader
    from library.models.tokenizers import TokenizerSet
    from library.records import Size


@dataclass(frozen=True, kw_only=True)
class UnetCaptions(UnetSettings):
    """What of `library/families/base.py` is about text, but for how the U-Net is told it."""

    def text_identity(self, files: UnetFiles, names: Sequence[str], dtype: torch.dtype) -> dict[str, str]:
        """What the outputs of these encoders depend on, as fields of a cache header."""
        return {**self.encoder_identities(files, names), **self.text_settings(dtype)}

    def text_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """Settings that what the text encoders give depends on."""
        from library.families.unet.text import text_settings

        return text_settings(self.text_layers(), num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def npz_reader(self, files: UnetFiles, dtype: torch.dtype, encoders: Sequence[str] = ()) -> UnetNpzReader:
        """Reads cache files of sd-scripts as a run with these settings would have written them."""
        from library.families.unet.npz_cache import UnetNpzReader
        from library.families.unet.parts import encoder_width

        return UnetNpzReader(
            family=self.name,
            encoders=tuple(encoders),
            widths={name: encoder_width(files.encoders[name]) for name in encoders},
            num_chunks=self.num_chunks,
            is_weighted=self.is_weighted,
            dtype=dtype,
        )

    def tokenize(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and masks of every encoder, in whole rows of 77. Shapes [B, 77 num_chunks]."""
        from library.families.unet.text import tokenize

        return tokenize(tokenizers, captions, num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def caption_lengths(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, tuple[list[int], int]]:
        """Tokens of each caption, and the limit, for every encoder."""
        from library.families.unet.text_sizes import caption_lengths

        return caption_lengths(tokenizers, captions, num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def caption_cuts(self, tokenizers: TokenizerSet, caption: str) -> dict[str, int]:
        """Where the encoders stop reading a caption that is too long for them."""
        from library.families.unet.text_sizes import caption_cuts

        return caption_cuts(tokenizers, caption, num_chunks=self.num_chunks, is_weighted=self.is_weighted)

    def text_state_bytes(
        self, files: UnetFiles, names: Sequence[str], lengths: Sequence[Mapping[str, int]], *, element_bytes: int
    ) -> int:
        """Bytes of cached encoder outputs."""
        from library.families.unet.parts import encoder_width
        from library.families.unet.text_sizes import text_state_bytes

        widths = {name: encoder_width(files.encoders[name]) for name in names}
        return text_state_bytes(widths, len(lengths), num_chunks=self.num_chunks, element_bytes=element_bytes)

    def encode_text(self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the given encoders."""
        from library.families.unet.text import encode

        return encode(encoders, tokens, layers=self.text_layers())

    def text_rows(self, tokens: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """No row is zero."""
        return {}

    def drop_text(self, states: Mapping[str, Tensor], uniform: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There is no encoder dropout."""
        return dict(states)

    def may_merge_padding(self, size: Size, device: torch.device) -> bool:
        """No row is zero, so none may be merged."""
        return False
