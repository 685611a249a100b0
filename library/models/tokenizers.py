"""Captions to token ids: where CLIP's and T5's tokenizers are looked for, and how ids are padded.

CLIP-L pads with its end token, CLIP-G and the CLIP of SD 2.x with id 0, T5 with id 0. Longer captions are cut. The
order of places is `--tokenizer_dir`, `--tokenizer_cache_dir`, folders beside the model, what the set-up made, the hub's
cache, the hub. Source of the paddings: the tokenizer settings published with Stable Diffusion 2, XL and 3.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.errors import CheckpointError
from library.log import get_logger
from library.models.tokenizer_hub import cached_folders, download_files, hub_answers
from library.models.vocabulary import CLIP_END, CLIP_START, T5_END, T5_PAD, Vocabulary, open_vocabulary
from library.tensorfile import user_cache_dir

CLIP_LENGTH = 77
HUB_IDS = {
    "clip": "openai/clip-vit-large-patch14",
    "clip_l": "openai/clip-vit-large-patch14",
    "clip_g": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "t5xxl": "google/t5-v1_1-xxl",
}
_HUB_CLIPS = ("clip_l", "clip_g")  # each with a place of its own
_HUB_FILES = {"clip": ("vocab.json", "merges.txt"), "t5": ("spiece.model",)}

# Folders inside a diffusers model, inside a ComfyUI install, and the given folder itself.
_CLIP_FOLDERS = ("tokenizer", "comfy/sd1_tokenizer", "ComfyUI/comfy/sd1_tokenizer", "sd1_tokenizer", "")
_T5_FOLDERS = (
    "tokenizer_3",
    "comfy/text_encoders/t5_tokenizer",
    "ComfyUI/comfy/text_encoders/t5_tokenizer",
    "text_encoders/t5_tokenizer",
    "t5_tokenizer",
    "tokenizer",
    "",
)
_MODEL_FOLDERS = {
    "clip": _CLIP_FOLDERS,
    "clip_l": (*_CLIP_FOLDERS, "tokenizer_2"),
    "clip_g": ("tokenizer_2", *_CLIP_FOLDERS),
    "t5xxl": _T5_FOLDERS,
}

logger = get_logger(__name__)


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of one encoder.

    Attributes:
        name: "clip" (of SD 1.x and 2.x), "clip_l", "clip_g" or "t5xxl".
        length: Of captions, for CLIP: 77, or less where the tokenizer's folder says so; None for T5.
        start: Id before the caption; None for T5.
        end: Id after the caption.
        pad: Id that fills the rest.
    """

    name: str
    vocabulary: Vocabulary
    length: int | None
    start: int | None
    end: int
    pad: int

    def encode(self, caption: str, length: int) -> tuple[list[int], list[int]]:
        """Ids and mask (1 up to the end token) of a caption, both of `length` numbers. A longer caption is cut."""
        head = [] if self.start is None else [self.start]
        ids = [*head, *self.vocabulary.encode(caption)[: length - len(head) - 1], self.end]
        num_padding = length - len(ids)
        return ids + [self.pad] * num_padding, [1] * len(ids) + [0] * num_padding

    def token_count(self, caption: str) -> int:
        """Number of tokens of the whole caption, start and end included."""
        return len(self.vocabulary.encode(caption)) + (1 if self.start is None else 2)

    def cut_at(self, caption: str, length: int) -> int | None:
        """Index of the first character that does not fit into `length` tokens; None where all of them do."""
        room = length - (1 if self.start is None else 2)
        return self.vocabulary.start_of(caption, room)

    def identity(self) -> str:
        """What the ids of a caption depend on, apart from a length that comes from elsewhere."""
        own = "" if self.length in (None, CLIP_LENGTH) else f":{self.length}"
        return f"{self.vocabulary.identity()}:{self.start}:{self.end}:{self.pad}{own}"


class TokenizerSet(dict[str, TextTokenizer]):
    """{encoder name: tokenizer}, in the order of the encoders."""

    def identity(self) -> str:
        """Hash of the vocabularies and paddings of all tokenizers, for cache headers."""
        text = " ".join(f"{name}={tokenizer.identity()}" for name, tokenizer in sorted(self.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_tokenizers(
    names: Sequence[str],
    *,
    tokenizer_dir: Path | None = None,
    cache_dir: Path | None = None,
    model_path: Path | None = None,
    vocab_rows: Mapping[str, int] | None = None,
    zero_padded: Collection[str] = ("clip_g",),
) -> TokenizerSet:
    """Find and open the tokenizers of the named encoders.

    Args:
        names: Of "clip", "clip_l", "clip_g", "t5xxl".
        tokenizer_dir: Any folder that has them: a diffusers model, a ComfyUI install, a clone of one tokenizer.
        cache_dir: Has (or gets, after a download) folders named after hub ids with _ for /.
        model_path: The weights file, or a diffusers folder.
        vocab_rows: {encoder name: rows of its token embedding}; a tokenizer that does not fit is refused.
        zero_padded: CLIPs that pad with id 0 and not with their end token.

    Raises:
        CheckpointError: A folder does not exist or has no tokenizer; or some are nowhere: one message names all.
    """
    places = _Places(tokenizer_dir, cache_dir, model_path)
    places.check_tokenizer_dir(names)
    found = {name: places.find(name) for name in names}
    if missing := [name for name, vocabulary in found.items() if vocabulary is None]:
        raise CheckpointError(_missing_message(missing, places))
    tokenizers = TokenizerSet(
        {name: _tokenizer(name, item, name in zero_padded) for name, item in found.items() if item is not None}
    )
    for name, tokenizer in tokenizers.items():
        logger.info("tokenizer of %s: %s", name, tokenizer.vocabulary.source)
        if vocab_rows is not None and name in vocab_rows:
            _check_rows(tokenizer, vocab_rows[name])
    return tokenizers


def setup_tokenizer_dir() -> Path:
    """Where the set-up script puts tokenizers, in folders named after hub ids with _ for /."""
    return user_cache_dir() / "tokenizers"


def hub_folder_name(name: str) -> str:
    """Folder of an encoder's tokenizer below `--tokenizer_cache_dir`, for instance openai_clip-vit-large-patch14."""
    return HUB_IDS[name].replace("/", "_")


def _kind(name: str) -> str:
    return "t5" if name == "t5xxl" else "clip"


def _tokenizer(name: str, vocabulary: Vocabulary, is_zero_padded: bool) -> TextTokenizer:
    ids = vocabulary.ids
    if vocabulary.kind == "t5":
        return TextTokenizer(name, vocabulary, None, None, ids[T5_END], ids[T5_PAD])
    length = min(CLIP_LENGTH, vocabulary.max_length or CLIP_LENGTH)
    pad = 0 if is_zero_padded else ids[CLIP_END]
    return TextTokenizer(name, vocabulary, length, ids[CLIP_START], ids[CLIP_END], pad)


class _Places:
    """Where to look, in the order of preference. Every folder is opened once."""

    def __init__(self, tokenizer_dir: Path | None, cache_dir: Path | None, model_path: Path | None) -> None:
        self.tokenizer_dir = tokenizer_dir
        self.cache_dir = cache_dir
        self.model_path = model_path
        self.open = functools.cache(open_vocabulary)
        self.is_hub_reachable: bool | None = None

    def check_tokenizer_dir(self, names: Sequence[str]) -> None:
        """Refuse a `--tokenizer_dir` that is of no use at all."""
        folder = self.tokenizer_dir
        if folder is None:
            return
        if not folder.is_dir():
            raise CheckpointError(f"--tokenizer_dir: {folder} is not a folder that exists. Check the path.")
        if not any(self.open(place, _kind(name)) for name in names for place in self._in_tokenizer_dir(name)):
            raise CheckpointError(
                f"--tokenizer_dir: neither {folder} nor tokenizer, tokenizer_2, tokenizer_3 or comfy inside has a "
                "tokenizer of CLIP or T5 (vocab.json with merges.txt, tokenizer.json or spiece.model). Check the path."
            )

    def find(self, name: str) -> Vocabulary | None:
        """The first vocabulary that serves an encoder; the hub is asked last."""
        for folder in self._folders(name):
            if (vocabulary := self.open(folder, _kind(name))) is not None:
                return vocabulary
        files = self._download(name)
        if not files:
            return None
        if self.cache_dir is not None:
            _copy(files, self.cache_dir / hub_folder_name(name))
        return self.open(files[0].parent, _kind(name))

    def _download(self, name: str) -> list[Path]:
        """The files of an encoder's tokenizer from the hub; empty when offline or unreachable."""
        if self.is_hub_reachable is None:
            self.is_hub_reachable = hub_answers()
        if not self.is_hub_reachable:
            return []
        logger.info("tokenizer of %s: getting %s from the hub", name, HUB_IDS[name])
        return download_files(HUB_IDS[name], _HUB_FILES[_kind(name)])

    def _folders(self, name: str) -> Iterator[Path]:
        yield from self._in_tokenizer_dir(name)
        if self.cache_dir is not None:
            yield from (self.cache_dir / part for part in _hub_names(name))
        if self.model_path is not None:
            beside = self.model_path if self.model_path.is_dir() else self.model_path.parent
            yield from (beside / part for part in _MODEL_FOLDERS[name] if part.startswith("tokenizer"))
        yield from (setup_tokenizer_dir() / part for part in _hub_names(name))
        yield from (folder for sharer in _sharers(name) for folder in cached_folders(HUB_IDS[sharer]))

    def _in_tokenizer_dir(self, name: str) -> list[Path]:
        if self.tokenizer_dir is None:
            return []
        return [self.tokenizer_dir / part for part in (*_hub_names(name), *_MODEL_FOLDERS[name])]


def _sharers(name: str) -> tuple[str, ...]:
    """Encoders with the same words, itself first: all CLIPs were trained with one vocabulary."""
    return (name, *(other for other in _HUB_CLIPS if other != name)) if _kind(name) == "clip" else (name,)


def _hub_names(name: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(part for sharer in _sharers(name) for part in (hub_folder_name(sharer), HUB_IDS[sharer]))
    )


def _copy(files: Sequence[Path], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
    except OSError as error:
        logger.warning("--tokenizer_cache_dir: %s cannot be written (%s)", folder, error)


def _check_rows(tokenizer: TextTokenizer, rows: int) -> None:
    """Refuse the tokenizer of another model, by the size of the encoder's token embedding."""
    needed = tokenizer.vocabulary.rows
    if needed > rows or 2 * needed < rows:
        raise CheckpointError(
            f"{tokenizer.vocabulary.source}: this tokenizer has {needed} tokens, {tokenizer.name} knows {rows}. "
            "They are of different models; give the folder of the right one with --tokenizer_dir."
        )


def _missing_message(names: Sequence[str], places: _Places) -> str:
    looked = [
        *([f"--tokenizer_dir {places.tokenizer_dir}"] if places.tokenizer_dir else []),
        *([f"--tokenizer_cache_dir {places.cache_dir}"] if places.cache_dir else []),
        *([f"folders beside {places.model_path}"] if places.model_path else []),
        str(setup_tokenizer_dir()),
        "the hub's cache" + (" or the hub" if places.is_hub_reachable else ", and the hub cannot be asked"),
    ]
    advice = ["Give --tokenizer_dir: where the original model lies, ComfyUI, or a diffusers model."]
    if any(_kind(name) == "clip" for name in names):
        advice.append("`python -m tools.make_clip_tokenizer` makes CLIP's.")
    if "t5xxl" in names:
        advice.append(f"T5's is tokenizer.json or spiece.model of {HUB_IDS['t5xxl']}.")
    return f"No tokenizer for {', '.join(names)} in {', '.join(looked)}. {' '.join(advice)}"
