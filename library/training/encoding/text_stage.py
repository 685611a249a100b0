"""Where a step's text states come from: the cache, the encoders, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from library.data.cache import stored_precision
from library.device import send
from library.families.base import Conditioning, ModelFamily
from library.records import Batch
from library.rng import stream_seed, uniform_per_sample

if TYPE_CHECKING:
    from torch import Tensor, nn


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
        where a cache is filled: autocast would narrow what T5 keeps in float32 for its range.
        """
        if not self.encoders:
            return {}
        tokens = self.family.tokenize(self.tokenizers, captions)
        trained = {name: encoder for name, encoder in self.encoders.items() if name in self.trained}
        frozen = {name: encoder for name, encoder in self.encoders.items() if name not in self.trained}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states = {name: self._kept(state) for name, state in self.family.encode_text(frozen, tokens).items()}
        return {**states, **self.family.encode_text(trained, tokens)}

    def _kept(self, state: Tensor) -> Tensor:
        state = stored_precision(state) if self.frozen_dtype is None else state.to(self.frozen_dtype)
        return send(state, self.device)

    def for_batch(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Cached and live states of a batch, after encoder dropout."""
        states = {**(batch.text or {}), **self.encode(batch.captions)}
        draws = {
            name: send(uniform_per_sample(_dropout_seeds(seed, name, batch)), self.device)
            for name, rate in self.family.dropout_rates.items()
            if rate > 0
        }
        return self.family.drop_text(states, draws)

    @torch.no_grad()
    def for_prompts(self, texts: Sequence[str], denoiser: nn.Module) -> Conditioning:
        """Conditioning of sample prompts; no dropout."""
        cached: dict[str, Tensor] = {}
        if self.prompts:
            rows = [self.prompts[text] for text in texts]
            cached = {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}
        return self.family.join_text({**cached, **self.encode(texts)}, denoiser)


def _dropout_seeds(seed: int, name: str, batch: Batch) -> list[int]:
    return [stream_seed(seed, "encoder_dropout", name, batch.plan.epoch, sample) for sample in batch.sample_ids]
