"""Encodings of text files: what is read, what is refused, and what is said about it."""

import codecs

import pytest

from library.data.files.text_files import decode_text, is_text_encoding, likely_encoding, text_lines


@pytest.mark.parametrize(
    ("data", "codec"),
    [
        ("é, ü".encode(), "utf-8"),
        (codecs.BOM_UTF8 + "é, ü".encode(), "utf-8-sig"),
        ("é, ü".encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + "é, ü".encode("utf-16-be"), "utf-16"),
        ("é, ü".encode("utf-32"), "utf-32"),
    ],
)
def test_marked_encodings_are_read(data, codec):
    assert decode_text(data) == ("é, ü", codec)
    assert decode_text(data, "latin-1") == ("é, ü", codec)  # a declared encoding is only for what is not marked


def test_declared_encoding_is_for_what_is_not_utf8():
    assert decode_text("Straße".encode("cp1252"), "cp1252") == ("Straße", "cp1252")
    assert decode_text("犬".encode("shift_jis"), "shift_jis") == ("犬", "shift_jis")
    assert decode_text("Straße".encode(), "cp1252") == ("Straße", "utf-8")
    assert decode_text("cat".encode("utf-16-le"), "utf-16-le") == ("cat", "utf-16-le")  # every other byte is zero


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (b"caf\xe9", None, "is not UTF-8 (byte 0xe9 at 3)"),
        (b"\x81", "cp1252", "is not UTF-8 (byte 0x81 at 0) and is not CP1252 (byte 0x81 at 0)"),
        ("cat".encode("utf-16-le"), None, "is not text in UTF-8 (it holds zero bytes)"),
        (codecs.BOM_UTF16_LE + b"a\0b", None, "is not UTF-16 (byte 0x62 at 4)"),
    ],
)
def test_other_files_are_refused(data, encoding, message):
    with pytest.raises(ValueError) as caught:
        decode_text(data, encoding)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "is_known"),
    [("cp1252", True), ("UTF-16", True), ("shift_jis", True), ("utf9", False), ("base64", False), ("a\0b", False)],
)
def test_names_of_encodings(name, is_known):
    assert is_text_encoding(name) == is_known


@pytest.mark.parametrize("codec", ["cp1252", "utf-16-le", "utf-16-be"])
def test_suggested_encoding_reads_the_file(codec):
    data = "Straße".encode(codec)
    assert decode_text(data, likely_encoding(data)) == ("Straße", codec)


def test_lines_of_all_systems_without_blank_ones():
    assert text_lines("\n one\r\n\r\n two \rthree\n \t\n") == ["one", "two", "three"]
    assert text_lines("no-break\u2028space stays") == ["no-break\u2028space stays"]
