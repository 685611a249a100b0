"""Tokenizers for the tiny model: a byte-level BPE as CLIP has it and a Unigram list as T5 has it.

Both have pieces for the words of the example captions and spell everything else letter by letter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

WORDS = (
    "a",
    "the",
    "of",
    "on",
    "in",
    "and",
    "with",
    "photo",
    "picture",
    "painting",
    "drawing",
    "style",
    "sks",
    "toy",
    "cat",
    "dog",
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "black",
    "white",
    "gray",
    "pink",
    "brown",
    "circle",
    "square",
    "triangle",
    "star",
    "ring",
    "stripe",
    "background",
    "small",
    "large",
    "left",
    "right",
)

CLIP_LENGTH = 77
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizers(folder: Path, words: Sequence[str] = WORDS, *, clip_length: int = CLIP_LENGTH) -> tuple[int, int]:
    """Write the folders tokenizer, tokenizer_2 (CLIP) and tokenizer_3 (T5). Returns the sizes of both vocabularies.

    Args:
        folder: Made if it does not exist.
        words: That have a piece of their own; see `clip_vocabulary` about their order.
        clip_length: What CLIP's tokenizers say of the length of captions, in tokens.
    """
    vocab, merges = clip_vocabulary(words)
    for name, pad in (("tokenizer", _CLIP_END), ("tokenizer_2", "!")):
        _write_clip(folder / name, vocab, merges, pad, clip_length)
    return len(vocab), _write_t5(folder / "tokenizer_3", words)


def write_clip_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    """Write one of CLIP's tokenizers, whose padding is the end of a text. Returns the size of its vocabulary."""
    vocab, merges = clip_vocabulary(words)
    _write_clip(folder, vocab, merges, _CLIP_END, CLIP_LENGTH)
    return len(vocab)


def clip_vocabulary(words: Sequence[str] = WORDS) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids in CLIP's order (bytes, bytes that end a word, merges, start and end) and the merges themselves.

    Letters that begin an earlier word are put together first: a later word that has them inside may stay in pieces.
    """
    letters = _byte_letters()
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        start, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for letter in rest:
            merges[start, letter] = None
            start += letter
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {token: index for index, token in enumerate([*tokens, _CLIP_START, _CLIP_END])}, list(merges)


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of GPT-2's table ("!" is first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _write_clip(folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]], pad: str, length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": _CLIP_START,
        "eos_token": _CLIP_END,
        "unk_token": _CLIP_END,
        "pad_token": pad,
        "do_lower_case": True,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_t5(folder: Path, words: Sequence[str]) -> int:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import Unigram

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -3.0 - 0.05 * index) for index, word in enumerate(words)]
    pieces += [(piece, -10.0) for piece in ["▁", *letters]]
    pieces = list(dict(reversed(pieces)).items())[::-1]  # "▁a" is a word, "a" a letter; nothing twice
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    config = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": 512,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return tokenizer.get_vocab_size()
