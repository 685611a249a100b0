"""What the denoiser is told about pictures: texts are encoded once for each strength of the networks, and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from library.families.base import Conditioning
from library.records import CropPlan, Size, View

if TYPE_CHECKING:
    from torch import Tensor

    from library.generation.model import DrawingModel
    from library.generation.record import GenerationRecord

_INNER = 75  # tokens of a text in a row
_MAX_ROWS = 3  # where the options say nothing
_MAX_KEPT = 512  # texts


@dataclass
class TextEncoding:
    """Encodes texts and keeps what encoders say of them.

    Attributes:
        model: With tokenizers and encoders.
        normalize: As of `--emb_normalize_mode`.
    """

    model: DrawingModel
    normalize: str = "original"
    _kept: dict[tuple[object, ...], tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]] = field(default_factory=dict)

    def num_rows(self, texts: Sequence[str]) -> int:
        """Rows of 75 tokens that the longest text fills, at most 3; 1 for families that read one."""
        family = self.model.family
        if family.with_text_rows(2) == family.with_text_rows(1):
            return 1
        lengths = family.caption_lengths(self.model.tokenizers, list(texts))
        longest = max(length for own, _ in lengths.values() for length in own) - 2
        return min(max(1, -(-longest // _INNER)), _MAX_ROWS)

    @torch.no_grad()
    def of(self, texts: Sequence[str], num_rows: int, strengths: tuple[float, ...] = ()) -> Conditioning:
        """Conditioning of some texts, in rows of the same number; `strengths` are those of the networks."""
        found = [self._states(text, num_rows, strengths) for text in texts]
        states = {name: torch.cat([own[name] for own, _ in found]) for name in found[0][0]}
        rows = {name: tuple(number for _, own in found for number in own[name]) for name in found[0][1]}
        return self.model.family.join_text(states, self.model.denoiser, rows)

    def _states(
        self, text: str, num_rows: int, strengths: tuple[float, ...]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
        key = (text, num_rows, strengths)
        if key not in self._kept:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[key] = self._encode(text, num_rows)
        return self._kept[key]

    def _encode(self, text: str, num_rows: int) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
        model, family = self.model, self.model.family.with_text_rows(num_rows)
        tokens = family.tokenize(model.tokenizers, [text])
        states = family.encode_text(model.encoders, tokens)
        if self.normalize != "none":
            plain = {name: ids for name, ids in tokens.items() if not name.endswith("_weights")}
            if any(not bool((tokens[name] == 1).all()) for name in tokens.keys() - plain.keys()):
                states = normalized(states, family.encode_text(model.encoders, plain), self.normalize)
        on_device = {name: state.to(model.device) for name, state in states.items()}
        return on_device, family.text_rows(tokens)


def normalized(weighted: Mapping[str, Tensor], plain: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    """Weighted states with the mean that they had before words were weighted.

    Args:
        weighted: Token states, {encoder: [B, N, D]}; pooled ones [B, D] stay as they are.
        plain: The same without weights.
        mode: "original" for the mean, "abs" for that of absolute values.
    """

    def mean(state: Tensor) -> Tensor:
        return (state.float().abs() if mode == "abs" else state.float()).mean(dim=(-2, -1), keepdim=True)

    return {
        name: state if state.dim() < 3 else (state.float() * (mean(plain[name]) / mean(state))).to(state.dtype)
        for name, state in weighted.items()
    }


def views_of(record: GenerationRecord, *, is_negative: bool = False) -> View:
    """What a picture shows, as SDXL is told it. Other families are told nothing of it."""
    size, sizes = Size(record.width, record.height), record.sizes
    if sizes is None:
        return View.whole(size)
    own = (sizes.original_width, sizes.original_height)
    negative = (sizes.original_width_negative, sizes.original_height_negative)
    original = Size(*(negative if is_negative else own))
    return View(original, CropPlan(size, sizes.crop_left, sizes.crop_top, size))


def stacked(parts: Sequence[Conditioning]) -> Conditioning:
    """Rows of several, one after the other."""
    context = torch.cat([part.context for part in parts])
    used = [part.is_used for part in parts if part.is_used is not None]
    sizes = [part.sizes for part in parts if part.sizes is not None]
    return replace(
        parts[0],
        context=context,
        pooled=torch.cat([part.pooled for part in parts]),
        is_used=torch.cat(used) if len(used) == len(parts) else None,
        sizes=torch.cat(sizes) if sizes else None,
    )
