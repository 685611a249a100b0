"""What all tools check that write text files beside pictures: the ending of the files, and words that go into them."""

from __future__ import annotations

from collections.abc import Iterator

from library.data.files.headers import IMAGE_SUFFIXES

_OF_OTHER_FILES = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".json", ".jsonl", ".toml")


def with_dot(extension: str) -> str:
    """An ending as it stands in names of files: ".txt" for "txt" and " .txt"."""
    extension = extension.strip()
    return extension if extension.startswith(".") else f".{extension}"


def extension_problems(option: str, extension: str) -> Iterator[str]:
    """What is wrong with the ending of text files: with that of a picture or a cache, these would be written over.

    Args:
        option: As the user types it, for instance "--caption_extension".
        extension: With its dot or without.
    """
    ending = with_dot(extension).lower()
    if len(ending) < 2 or set(ending) & set("/\\\r\n") or ending.endswith("."):
        yield f"{option} needs the ending of text files, such as .txt, got {extension!r}."
    elif ending.endswith((*IMAGE_SUFFIXES, *_OF_OTHER_FILES)):
        yield f"{option} needs the ending of text files, such as .txt; files of other kinds end with {extension!r}."


def line_problems(option: str, words: str | None, *, may_be_blank: bool = False) -> Iterator[str]:
    """What is wrong with words that go into a caption: a line break, since a training reads the first line only.

    Args:
        option: As the user types it.
        words: None where it is not given.
        may_be_blank: Blanks alone make sense, as they do between words.
    """
    if words is None:
        return
    if set(words) & set("\r\n"):
        yield f"{option} must be a text without line breaks: a training reads one line by default. Got {words!r}."
    elif not words or not (may_be_blank or words.strip()):
        yield f"{option} must not be empty, got {words!r}. Leave it out, or give it words."
