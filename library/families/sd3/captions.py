"""The text of SD3 for a training: tokens, what encoders say, caches of it, and what the MMDiT is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from library.families.base import Conditioning
from library.families.sd3.settings import Sd3Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.checkpoint.weights import Part
    from library.families.sd3.checkpoint import Sd3Files
    from library.families.sd3.npz_cache import Sd3NpzReader
    from library.models.mmdit import MMDiT
    from library.models.tokenizers import TokenizerSet
    from library.records import Size


@dataclass(frozen=True, kw_only=True)
class Sd3Captions(Sd3Settings):
    """What of `library/families/base.py` is about text."""

    def text_identity(self, files: Sd3Files, names: Sequence[str], dtype: torch.dtype) -> dict[str, str]:
        """What the outputs of these encoders depend on, as fields of a cache header."""
        identity = self.encoder_identities(files, names)
        if "t5xxl" in names:
            identity["t5xxl_max_token_length"] = str(self.t5_length)
            identity["apply_t5_attn_mask"] = str(self.apply_t5_attn_mask)
            identity |= self._t5_settings(dtype)
        if "clip_l" in names or "clip_g" in names:
            identity["apply_lg_attn_mask"] = str(self.apply_lg_attn_mask)
        return identity

    def text_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """Settings that what the text encoders give depends on."""
        return {
            "t5xxl_max_token_length": str(self.t5_length),
            "apply_t5_attn_mask": str(self.apply_t5_attn_mask),
            **self._t5_settings(dtype),
            "apply_lg_attn_mask": str(self.apply_lg_attn_mask),
        }

    def _t5_settings(self, dtype: torch.dtype) -> dict[str, str]:
        """The format of T5, where it is not that of the others."""
        from library.families.sd3.t5_format import T5Format

        form = T5Format.of(self.t5_dtype, dtype)
        return {} if form == T5Format(dtype) else {"t5xxl_dtype": form.name}

    def npz_reader(self, files: Sd3Files, dtype: torch.dtype, encoders: Sequence[str] = ()) -> Sd3NpzReader:
        """Reads cache files of sd-scripts as a run with these settings would have written them."""
        from library.families.sd3.npz_cache import Sd3NpzReader
        from library.families.sd3.parts import clip_width

        return Sd3NpzReader(
            clip_widths={
                name: clip_width(cast("Part", self.encoder_part(files, name))) for name in ("clip_l", "clip_g")
            },
            encoders=tuple(encoders),
            t5_length=self.t5_length,
            t5_width=files.config.context_dim,
            apply_lg_attn_mask=self.apply_lg_attn_mask,
            apply_t5_attn_mask=self.apply_t5_attn_mask,
            dtype=dtype,
        )

    def tokenize(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and masks of every encoder. Shapes [B, 77] and [B, t5_length]."""
        from library.families.sd3.text import tokenize

        return tokenize(tokenizers, captions, t5_length=self.t5_length)

    def caption_lengths(self, tokenizers: TokenizerSet, captions: Sequence[str]) -> dict[str, tuple[list[int], int]]:
        """Tokens of each caption, and the limit, for every encoder."""
        from library.families.sd3.text_sizes import caption_lengths

        return caption_lengths(tokenizers, captions, t5_length=self.t5_length)

    def caption_cuts(self, tokenizers: TokenizerSet, caption: str) -> dict[str, int]:
        """Where the encoders stop reading a caption that is too long for them."""
        from library.families.sd3.text_sizes import caption_cuts

        return caption_cuts(tokenizers, caption, t5_length=self.t5_length)

    def text_state_bytes(
        self, files: Sd3Files, names: Sequence[str], lengths: Sequence[Mapping[str, int]], *, element_bytes: int
    ) -> int:
        """Bytes of cached encoder outputs; padding that a mask makes zero takes none."""
        from library.families.sd3.text_sizes import text_state_bytes

        return text_state_bytes(
            files, names, lengths, t5_length=self.t5_length, masked=self.masked, element_bytes=element_bytes
        )

    def encode_text(self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States of the given encoders: "clip_l", "clip_l_pooled", "clip_g", "clip_g_pooled", "t5xxl"."""
        from library.families.sd3.text import encode

        return encode(
            encoders,
            tokens,
            apply_lg_attn_mask=self.apply_lg_attn_mask,
            apply_t5_attn_mask=self.apply_t5_attn_mask,
        )

    def text_rows(self, tokens: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Tokens of each caption, of encoders with a mask."""
        from library.families.sd3.text import text_rows

        return text_rows(tokens, self.masked)

    def drop_text(self, states: Mapping[str, Tensor], uniform: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zero an encoder's states where its draw falls below its dropout rate."""
        from library.families.sd3.text import drop

        return drop(states, uniform, self.dropout_rates)

    def join_text(
        self,
        states: Mapping[str, Tensor],
        denoiser: nn.Module,
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> Conditioning:
        """[CLIP-L and CLIP-G side by side ; T5] along the tokens, and both pooled vectors."""
        from library.families.sd3.text import join, used_rows

        config = cast("MMDiT", denoiser).config
        joined = join(states, context_dim=config.context_dim, pooled_dim=config.pooled_dim)
        if rows is None or not self.merges_padding or not self.masked:
            return joined
        return replace(joined, is_used=used_rows(states, rows))

    def may_merge_padding(self, size: Size, device: torch.device) -> bool:
        """Where a mask makes padding zero, and the picture is so small that fewer rows of the context pay."""
        from library.models.merged_padding import may_pay
        from library.models.tokenizers import CLIP_LENGTH

        side = self.bucket_multiple  # of a patch, in pixels
        num_patches = (size.width // side) * (size.height // side)
        can_be = self.merges_padding and bool(self.masked)
        return can_be and may_pay(CLIP_LENGTH + self.t5_length, num_patches, device)
