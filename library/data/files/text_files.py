"""Text files as people have them: which encoding they are in, and their lines."""

from __future__ import annotations

import codecs

_MARKS = (  # first bytes that name an encoding; UTF-32's begin like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """The text of a file, and the name of the encoding it is in. Nothing is guessed.

    Args:
        data: The file.
        encoding: What a file is in that is not UTF-8 and does not say by its first bytes that it is UTF-16 or UTF-32.

    Raises:
        ValueError: It is in another encoding. The message follows the name of the file.
    """
    marked = [codec for mark, codec in _MARKS if data.startswith(mark)][:1]
    faults = []
    for codec in marked or ["utf-8", *([encoding] if encoding else [])]:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError as error:
            faults.append(f"is not {codec.upper()} (byte {data[error.start]:#04x} at {error.start})")
            continue
        if "\0" not in text:
            return text, codec
        faults.append(f"is not text in {codec.upper()} (it holds zero bytes)")
    raise ValueError(" and ".join(faults))


def likely_encoding(data: bytes) -> str:
    """A name to suggest for the encoding of a file that `decode_text` refuses; it is not tried.

    Args:
        data: The file. Latin letters in UTF-16 have a zero for every other byte.
    """
    behind, before = data[1::2].count(0), data[::2].count(0)
    if not behind and not before:
        return "cp1252"
    return "utf-16-le" if behind >= before else "utf-16-be"


def is_text_encoding(name: str) -> bool:
    """Whether Python can read text in an encoding of this name."""
    try:
        b"test".decode(name, "replace")
    except (LookupError, ValueError):
        return False
    return True


def is_whole(text: str) -> bool:
    """Whether a text can be written down: half of a pair of surrogates, as escapes in JSON may leave it, cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def text_lines(text: str) -> list[str]:
    """The lines that are not blank, without blanks around them."""
    stripped = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    return [line for line in stripped if line]
