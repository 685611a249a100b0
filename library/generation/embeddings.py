"""Embeddings of textual inversion while a model draws: words that stand for vectors of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.log import get_logger
from library.models.word_places import has_word

if TYPE_CHECKING:
    from torch import Tensor

    from library.generation.model import DrawingModel

logger = get_logger(__name__)

_OPTION = "--textual_inversion_embeddings"


def read_embeddings(paths: Sequence[Path] | None) -> dict[Path, Mapping[str, Tensor]]:
    """{file: its vectors}, before a model is read.

    Raises:
        CheckpointError: A file is missing, damaged or no embedding, or two have one name.
    """
    from library.checkpoint.embeddings import read_embedding

    found: dict[Path, Mapping[str, Tensor]] = {}
    words: dict[str, Path] = {}
    for path in paths or ():
        other = words.setdefault(path.stem.lower(), path)
        if other != path:
            raise CheckpointError(f"{_OPTION}: {other} and {path} are for the same word. Rename one of the files.")
        found[path] = read_embedding(path, _OPTION)
    return found


def tell_unused_words(embeddings: Iterable[Path], texts: Sequence[str]) -> None:
    """Warn of embeddings whose words are in none of the texts."""
    for path in embeddings:
        if not any(has_word(text, path.stem) for text in texts):
            logger.warning('%s: %s has no effect: no prompt has the word "%s".', _OPTION, path, path.stem)


def add_embeddings(model: DrawingModel, embeddings: Mapping[Path, Mapping[str, Tensor]]) -> None:
    """Let the model's tokenizers and encoders know the word of each file.

    Raises:
        CheckpointError: An embedding is of another model.
    """
    from library.models.added_words import add_words

    for path, vectors in embeddings.items():
        add_words(model.tokenizers, model.encoders, path.stem, vectors, what=f"{_OPTION}: {path}")
        logger.info('%s: "%s" in a prompt stands for it.', path, path.stem)
