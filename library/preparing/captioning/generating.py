"""From a batch of inputs to captions: how a captioner chooses its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from library.preparing.captioning.keyed_draws import KeyedDraws
from library.preparing.captioning.kinds import CaptionerKind
from library.preparing.captioning.lengths import WordChoice
from library.preparing.captioning.models import Captioner
from library.preparing.captioning.prompting import Inputs, words_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """Captions of a batch.

    Attributes:
        texts: In the order of the pictures.
        num_cut: How many ended because they were as long as allowed.
    """

    texts: tuple[str, ...]
    num_cut: int


def caption_batch(captioner: Captioner, inputs: Inputs, names: Sequence[str], reader: Any) -> Answers:
    """Describe pictures.

    Args:
        captioner: The model.
        inputs: What its processor made of the pictures.
        names: Of the pictures; draws depend on them.
        reader: A tokenizer that nobody uses meanwhile, to make words of tokens.
    """
    import torch

    on_device = {
        name: value.to(captioner.device, captioner.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    with torch.inference_mode():
        tokens = captioner.model.generate(**on_device, **_settings(captioner.kind, names, captioner.choice)).cpu()
    texts = words_of(tokens, inputs, captioner.kind, reader)
    return Answers(tuple(texts), _num_cut(tokens, captioner.model, reader))


def _settings(kind: CaptionerKind, names: Sequence[str], choice: WordChoice) -> dict[str, Any]:
    from transformers import LogitsProcessorList

    new = "" if kind.prompting == "prefix" else "_new_tokens"
    lengths: dict[str, Any] = {
        f"max{new or '_length'}": choice.max_length,
        f"min{new or '_length'}": choice.min_length,
    }
    if choice.num_beams is not None:
        return {**lengths, "do_sample": False, "num_beams": choice.num_beams}
    draws = KeyedDraws(names, seed=choice.seed, top_p=choice.top_p, temperature=choice.temperature)
    return {**lengths, "do_sample": False, "num_beams": 1, "logits_processor": LogitsProcessorList([draws])}


def _num_cut(tokens: Tensor, model: Any, tokenizer: Any) -> int:
    """How many rows have no end. Shape of tokens: [B, L]."""
    import torch

    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    own = model.generation_config.eos_token_id
    ends |= set(own) if isinstance(own, (list, tuple)) else {own}
    last = torch.tensor(sorted(end for end in ends if end is not None))
    return int((~torch.isin(tokens[:, -1], last)).sum())
