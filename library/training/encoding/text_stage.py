"""Where a step's text states come from: the cache, the encoders, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from library.data.cache import stored_precision, used_rows
from library.device import send
from library.families.base import Conditioning, ModelFamily
from library.records import Batch
from library.rng import stream_seed, uniform_per_sample

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextStates(NamedTuple):
    """What the encoders say of some texts.

    Attributes:
        states: On the device of the denoiser, {name: [B, ...]}.
        rows: {encoder: for each text the number of rows of its token states up to which they may differ from zero}; of
            encoders where the host knows it.
    """

    states: dict[str, Tensor]
    rows: dict[str, tuple[int, ...]]


@dataclass
class TextStage:
    """Text states of batches and of sample prompts.

    Attributes:
        encoders: Those that run in every step, in the family's order; empty where all is cached.
        tokenizers: None where no encoder runs.
        prompts: Cached states of the sample prompts, by their text, without batch axis. They grow when prompts are
            edited while a training runs.
        trained: Names of the encoders that train.
        frozen_dtype: What states of frozen encoders are handed on in, whatever an encoder computes in; None keeps
            its own, as far as a cache does.
    """

    family: ModelFamily
    device: torch.device
    encoders: dict[str, nn.Module] = field(default_factory=dict)
    tokenizers: Any = None
    prompts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    frozen_dtype: torch.dtype | None = None

    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """States of the live encoders on the device of the denoiser, {name: [B, ...]}.

        Encoders that train run under the caller's autocast. Frozen ones run in the precision they are loaded in, as
        where a cache is filled: autocast would narrow what an encoder keeps in float32 for its range.
        """
        return self._encode(captions).states

    def _encode(self, captions: Sequence[str]) -> TextStates:
        if not self.encoders:
            return TextStates({}, {})
        tokens = self.family.tokenize(self.tokenizers, captions)
        trained = {name: encoder for name, encoder in self.encoders.items() if name in self.trained}
        frozen = {name: encoder for name, encoder in self.encoders.items() if name not in self.trained}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states = {name: self._kept(state) for name, state in self.family.encode_text(frozen, tokens).items()}
        return TextStates({**states, **self.family.encode_text(trained, tokens)}, self.family.text_rows(tokens))

    def _kept(self, state: Tensor) -> Tensor:
        state = stored_precision(state) if self.frozen_dtype is None else state.to(self.frozen_dtype)
        return send(state, self.device)

    def of_batch(self, batch: Batch) -> TextStates:
        """Cached and live states of a batch."""
        live = self._encode(batch.captions)
        return TextStates({**(batch.text or {}), **live.states}, {**(batch.text_rows or {}), **live.rows})

    def for_batch(self, batch: Batch, seed: int) -> TextStates:
        """Cached and live states of a batch, after encoder dropout."""
        states, rows = self.of_batch(batch)
        rates = {name: rate for name, rate in self.family.dropout_rates.items() if rate > 0}
        draws = {name: uniform_per_sample(_dropout_seeds(seed, name, batch)) for name in rates}
        for name, draw in draws.items():
            if name in rows:
                is_dropped = (draw < rates[name]).tolist()
                rows[name] = tuple(0 if gone else n for n, gone in zip(rows[name], is_dropped, strict=True))
        return TextStates(self.family.drop_text(states, {k: send(v, self.device) for k, v in draws.items()}), rows)

    @torch.no_grad()
    def for_prompts(self, texts: Sequence[str], denoiser: nn.Module) -> Conditioning:
        """Conditioning of sample prompts; no dropout."""
        cached: dict[str, Tensor] = {}
        rows: dict[str, tuple[int, ...]] = {}
        if self.prompts:
            known = [self.prompts[text] for text in texts]
            cached = {name: torch.stack([one[name] for one in known]).to(self.device) for name in known[0]}
            rows = used_rows(known)
        live = self._encode(texts)
        return self.family.join_text({**cached, **live.states}, denoiser, {**rows, **live.rows})


def _dropout_seeds(seed: int, name: str, batch: Batch) -> list[int]:
    return [stream_seed(seed, "encoder_dropout", name, batch.plan.epoch, sample) for sample in batch.sample_ids]
