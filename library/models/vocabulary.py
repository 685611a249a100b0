"""Tokenizer files of CLIP and T5 in the forms in which people have them, opened without transformers.

Forms of a folder: `vocab.json` with `merges.txt` (CLIP), `tokenizer.json` (either), `spiece.model` (T5). What is
opened is told by its special tokens, not by the folder's name, so a wrong folder is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, EnvironmentFault

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLIP_START = "<|startoftext|>"
CLIP_END = "<|endoftext|>"
T5_PAD = "<pad>"
T5_END = "</s>"
_SHORTEST, _LONGEST = 3, 1 << 20  # tokens; other numbers in tokenizer_config.json stand for "any length"
_MIN_WORDS = 8  # fewer: not a vocabulary but what a library makes up when files are missing

# How CLIP cuts a caption into words before byte pairs are merged.
# Source: Radford et al. 2021, arXiv:2103.00020, and its published tokenizer files.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Vocabulary:
    """An opened tokenizer.

    Attributes:
        kind: "clip" or "t5".
        source: The folder it came from.
        ids: {token: id}.
        encode: Caption to ids, without start, end or padding, of any length.
        start_of: Index of the character where the token of a number (from 0) begins; None where there are fewer tokens.
        max_length: Tokens of a caption with begin and end as tokenizer_config.json says it; None where it does not.
    """

    kind: str
    source: Path
    ids: Mapping[str, int]
    encode: Callable[[str], list[int]]
    start_of: Callable[[str, int], int | None]
    max_length: int | None = None

    @property
    def rows(self) -> int:
        """Rows that a token embedding must have. T5's sentinels do not count: no caption contains them."""
        return 1 + max(index for token, index in self.ids.items() if not token.startswith("<extra_id_"))

    def identity(self) -> str:
        """Hash of the tokens and their ids."""
        listing = json.dumps(sorted((index, token) for token, index in self.ids.items()))
        return hashlib.sha256(f"{self.kind} {listing}".encode()).hexdigest()[:16]


def open_vocabulary(folder: Path, kind: str) -> Vocabulary | None:
    """Open the tokenizer of a kind ("clip" or "t5") in a folder.

    Returns:
        None where the folder has no such tokenizer.

    Raises:
        CheckpointError: A file is damaged, or the vocabulary cannot be CLIP's or T5's.
        EnvironmentFault: `spiece.model` needs the sentencepiece package.
    """
    tokenizer = None
    if kind == "clip" and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _clip_from_files(folder)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer_json(folder / "tokenizer.json")
    if tokenizer is not None and _kind(ids := tokenizer.get_vocab(with_added_tokens=True)) == kind:
        return _from_tokenizer(tokenizer, kind, ids, folder)
    if kind == "t5" and (folder / "spiece.model").is_file():
        return _from_sentencepiece(folder / "spiece.model")
    return None


def _from_tokenizer(tokenizer: Tokenizer, kind: str, ids: Mapping[str, int], folder: Path) -> Vocabulary:
    _check(kind, ids, folder)

    def encode(caption: str) -> list[int]:
        return list(tokenizer.encode(caption, add_special_tokens=False).ids)

    def start_of(caption: str, number: int) -> int | None:
        spans = tokenizer.encode(caption, add_special_tokens=False).offsets
        return int(spans[number][0]) if number < len(spans) else None

    return Vocabulary(kind, folder, ids, encode, start_of, _max_length(folder / "tokenizer_config.json"))


def _max_length(path: Path) -> int | None:
    """What the settings beside a tokenizer say; other tools go by the same number."""
    told = _read_json(path).get("model_max_length") if path.is_file() else None
    return int(told) if isinstance(told, int | float) and _SHORTEST <= told <= _LONGEST else None


def _kind(ids: Mapping[str, int]) -> str | None:
    if CLIP_START in ids and CLIP_END in ids:
        return "clip"
    return "t5" if T5_PAD in ids and T5_END in ids else None


def _check(kind: str, ids: Mapping[str, int], source: Path) -> None:
    """Refuse an empty vocabulary, and those of other models that look like T5's."""
    num_words = sum(not (token.startswith("<") and token.endswith(">")) for token in ids)
    if num_words < _MIN_WORDS:
        raise CheckpointError(f"{source}: the tokenizer has only {num_words} words. Copy its files again.")
    if kind == "t5" and (ids[T5_PAD], ids[T5_END]) != (0, 1):
        raise CheckpointError(
            f"{source}: the tokenizer has {T5_PAD} at {ids[T5_PAD]} and {T5_END} at {ids[T5_END]}, T5 has them at 0 "
            "and 1. Use the tokenizer of google/t5-v1_1-xxl."
        )


def _clip_from_files(folder: Path) -> Tokenizer | None:
    ids = _read_json(folder / "vocab.json")
    if CLIP_START not in ids or CLIP_END not in ids:
        return None
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    model = BPE(
        vocab=ids, merges=_read_merges(folder / "merges.txt", ids), end_of_word_suffix="</w>", unk_token=CLIP_END
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (CLIP_START, CLIP_END)])
    return tokenizer


def _read_merges(path: Path, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = _read_text(path).split("\n")
    pairs = [line.split() for line in lines[lines[0].startswith("#version") :] if line.strip()]
    if wrong := [pair for pair in pairs if len(pair) != 2 or "".join(pair) not in ids]:
        raise CheckpointError(
            f"{path}: {len(wrong)} lines do not fit vocab.json beside it, the first is {' '.join(wrong[0])!r}. "
            "Copy both files from the same place."
        )
    return [(left, right) for left, right in pairs]


def _read_tokenizer_json(path: Path) -> Tokenizer | None:
    content = _read_json(path)
    if content.get("model", {}).get("type") not in ("BPE", "Unigram"):
        return None
    from tokenizers import Tokenizer

    plain = _without_taken_words(content)
    tokenizer = Tokenizer.from_file(str(path)) if plain is content else Tokenizer.from_str(json.dumps(plain))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_taken_words(content: dict[str, Any]) -> dict[str, Any]:
    """The settings of a tokenizer, where no word of CLIP's captions stands for padding.

    Files that newer versions of transformers save for CLIP-G and for SD 2.x make "!" a token that ends words wherever
    it is. The encoders were trained without that, and vocab.json beside such a file does not say it.
    """
    words, tokens = content["model"].get("vocab", {}), content.get("added_tokens", [])
    if CLIP_START not in words:
        return content
    own = [token for token in tokens if token["content"] not in words or token["content"] in (CLIP_START, CLIP_END)]
    return content if own == tokens else {**content, "added_tokens": own}


def _from_sentencepiece(path: Path) -> Vocabulary | None:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise EnvironmentFault(
            f"{path} needs the sentencepiece package. Run `pip install sentencepiece`, or give a folder with "
            "tokenizer.json."
        ) from None
    try:
        processor: Any = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise CheckpointError(f"{path} is not a SentencePiece model. Copy the file again.") from None
    ids = {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
    if _kind(ids) != "t5":
        return None
    _check("t5", ids, path.parent)
    return Vocabulary("t5", path.parent, ids, processor.encode_as_ids, partial(_start_by_trying, processor))


def _start_by_trying(processor: Any, caption: str, number: int) -> int | None:
    """The longest beginning of the caption that has `number` tokens. SentencePiece tells places only with protobuf."""
    if len(processor.encode_as_ids(caption)) <= number:
        return None
    fits, too_long = 0, len(caption)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(processor.encode_as_ids(caption[:middle])) <= number:
            fits = middle
        else:
            too_long = middle
    return fits


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except ValueError:
        raise CheckpointError(f"{path} is damaged: it is not JSON. Copy the file again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a tokenizer file. Copy the file again.")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Copy the file again.") from None
