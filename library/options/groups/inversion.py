"""Options about a word whose vectors are learned, while the whole model stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.options.groups.saving import SavingOptions
from library.options.spec import OptionGroup, opt

_NO_PART_OF_A_WORD = re.compile(r"[\s,()\[\]{}|:\\]")
_NO_FILE_NAME = set('/\\:*?"<>|')


@dataclass(frozen=True, kw_only=True)
class InversionOptions(OptionGroup):
    """The word that is learned."""

    title: ClassVar[str] = "Textual inversion"

    token_string: str | None = opt(
        None, "The new word. Captions and prompts have it; the tokenizer must not know it yet."
    )
    init_word: str | None = opt(
        None,
        "The vectors begin as those of this word or words. Not set means random ones, spread as those of all words.",
    )
    num_vectors_per_token: int = opt(1, "Vectors that the word stands for.", unit="vectors", minimum=1, maximum=75)
    weights: Path | None = opt(None, "Embedding file to begin with.")
    use_object_template: bool = opt(
        False, "Ignore captions: each time a sentence about a thing is drawn, such as a photo of the word."
    )
    use_style_template: bool = opt(
        False, "The same with sentences about a style, such as a painting in the style of the word."
    )

    @property
    def encoder_arguments(self) -> Mapping[str, str]:
        """What a family has to know to say which text encoders learn the word."""
        return {}

    @property
    def has_template(self) -> bool:
        """Whether captions are ignored."""
        return self.use_object_template or self.use_style_template

    def check(self) -> Iterator[str]:
        word = self.token_string
        if word is not None and (found := _NO_PART_OF_A_WORD.search(word)):
            yield (
                f"--token_string is one word, got {word!r}: captions and prompts could not have it with "
                f"{'a blank' if found[0].isspace() else found[0]} inside. Give another word."
            )
        if self.init_word is not None and not self.init_word.strip():
            yield "--init_word is empty. Give a word that the model knows, or leave it out."
        if self.use_object_template and self.use_style_template:
            yield "--use_object_template and --use_style_template exclude each other. Keep one of them."

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.weights is not None:
            yield "init_word", "--weights has the vectors to begin with"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSavingOptions(SavingOptions):
    """The same for scripts that save embeddings."""

    output_name: str | None = opt(None, "File name without ending. Not set means the word of --token_string.")
    save_model_as: str | None = opt(
        "pt",
        "Format of the saved file; pt and ckpt are that of A1111, which has no metadata.",
        choices=("ckpt", "pt", "safetensors"),
    )


def is_file_name(word: str) -> bool:
    """Whether a file can be called after a word."""
    return bool(word.strip(".")) and not set(word) & _NO_FILE_NAME
