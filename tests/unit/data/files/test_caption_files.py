"""Captions of a folder: what is read, what stands in for what is missing, and what is said about it."""

from pathlib import Path

import pytest

from library.data.config.specs import SubsetSpec
from library.data.files.caption_files import read_captions
from library.data.plan.captions import CaptionRules

DOGS = "sks dog"


def read(folder, texts, *, images=None, extension=".txt", **options):
    """Write caption files {name: text or bytes}; read them for pictures of the same stems, or for `images`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    paths = [folder / name for name in images or [f"{Path(name).stem}.png" for name in texts]]
    subset = SubsetSpec(image_dir=folder, caption_extension=extension, **options)
    return read_captions(subset, paths, {folder: frozenset(texts)})


def by_name(reading):
    return {path.name: caption for path, caption in reading.captions.items()}


def lines_of(reading):
    return [str(fault) for fault in reading.findings.faults]


def test_first_line_that_is_not_blank(tmp_path):
    texts = {"bom.txt": b"\xef\xbb\xbfmark", "blank.txt": "\n  \r\n second \r\n", "a.v1.txt": "é, ü"}
    reading = read(tmp_path, texts)
    assert by_name(reading) == {"bom.png": "mark", "blank.png": "second", "a.v1.png": "é, ü"}
    assert reading.findings.notes == reading.findings.faults == reading.findings.remarks == ()


def test_all_lines_with_wildcards(tmp_path):
    texts = {"a.txt": "one\n\n two\nthree"}
    reading = read(tmp_path, texts, captions=CaptionRules(enable_wildcard=True))
    assert by_name(reading) == {"a.png": "one\ntwo\nthree"}
    assert reading.findings.notes == ()


def test_lines_that_are_not_used_are_counted(tmp_path):
    reading = read(tmp_path, {f"{number}.txt": "one\ntwo" for number in range(7)})
    assert set(by_name(reading).values()) == {"one"}
    (note,) = reading.findings.notes
    assert note.startswith(f"{tmp_path}: caption files with several lines, of which only the first is used")
    assert note.endswith(": 7 (0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...)")


def test_many_captions_keep_their_pictures(tmp_path):
    reading = read(tmp_path, {f"{number}.txt": f"text {number}" for number in range(700)})
    assert by_name(reading) == {f"{number}.png": f"text {number}" for number in range(700)}
    assert list(by_name(reading)) == [f"{number}.png" for number in range(700)]


def test_utf16_is_read_and_counted(tmp_path):
    reading = read(tmp_path, {"a.txt": "Katze".encode("utf-16"), "b.txt": "cat"})
    assert by_name(reading) == {"a.png": "Katze", "b.png": "cat"}
    assert reading.findings.remarks == (f"{tmp_path}: caption files read as UTF-16: 1 (a.txt)",)


def test_declared_encoding_is_read_and_counted(tmp_path):
    texts = {"a.txt": "Straße".encode("cp1252"), "b.txt": "Straße"}
    reading = read(tmp_path, texts, caption_encoding="cp1252")
    assert by_name(reading) == {"a.png": "Straße", "b.png": "Straße"}
    assert reading.findings.remarks == (f"{tmp_path}: caption files read as CP1252: 1 (a.txt)",)


def test_files_of_unknown_encoding_are_all_listed(tmp_path):
    reading = read(tmp_path, {"a.txt": b"caf\xe9", "b.txt": "fine", "c.txt": b"c\0a\0t\0"})
    assert by_name(reading) == {"b.png": "fine"}
    advice = "save it again as UTF-8, or declare its encoding, for instance caption_encoding ="
    assert lines_of(reading) == [
        f'{tmp_path / "a.txt"} is not UTF-8 (byte 0xe9 at 3); {advice} "cp1252"',
        f'{tmp_path / "c.txt"} is not text in UTF-8 (it holds zero bytes); {advice} "utf-16-le"',
    ]
    assert [fault.picture.name for fault in reading.findings.faults] == ["a.png", "c.png"]


def test_unknown_encoding_is_a_problem(tmp_path):
    reading = read(tmp_path, {"a.txt": b"caf\xe9"}, caption_encoding="utf9")
    assert reading.findings.problems == (f'{tmp_path}: caption_encoding "utf9" is not known; a usual one is "cp1252"',)
    assert reading.findings.faults == ()


def test_files_without_text_are_all_listed(tmp_path):
    reading = read(tmp_path, {"a.txt": "", "b.txt": " \n\n", "c.txt": "\ufeff", "d.txt": "text"})
    assert by_name(reading) == {"d.png": "text"}
    advice = 'write a caption into it, or set empty_caption = "allow"'
    assert lines_of(reading) == [f"{tmp_path / name} has no text; {advice}" for name in ("a.txt", "b.txt", "c.txt")]
    assert [fault.picture.name for fault in reading.findings.faults] == ["a.png", "b.png", "c.png"]
    (fault,) = read(tmp_path, {"a.txt": ""}, class_tokens=DOGS).findings.faults
    assert 'set empty_caption = "class_tokens" or "allow"' in fault.problem


@pytest.mark.parametrize(("policy", "caption"), [("allow", ""), ("class_tokens", DOGS)])
def test_files_without_text_may_be_allowed(tmp_path, policy, caption):
    reading = read(tmp_path, {"a.txt": "", "b.txt": "text"}, empty_caption=policy, class_tokens=DOGS)
    assert by_name(reading) == {"a.png": caption, "b.png": "text"}
    assert reading.findings.faults == ()
    (note,) = reading.findings.notes
    assert note.startswith(f"{tmp_path}: caption files without text, ")
    assert note.endswith(": 1 (a.txt)")
    assert ("class_tokens" in note) == (policy == "class_tokens")


def test_class_tokens_for_empty_captions_have_to_exist(tmp_path):
    reading = read(tmp_path, {"a.txt": "text"}, empty_caption="class_tokens")
    assert reading.findings.problems == (f'{tmp_path}: empty_caption = "class_tokens" needs class_tokens',)


def test_missing_captions_are_all_listed(tmp_path):
    reading = read(
        tmp_path, {"a.txt": "text", "c.caption": "x", "D.TXT": "x"}, images=["a.png", "b.png", "c.png", "d.png"]
    )
    assert by_name(reading) == {"a.png": "text"}
    advice = 'write one, or set class_tokens or missing_caption = "allow"'
    assert lines_of(reading) == [
        f"{tmp_path / 'b.png'} has no caption file b.txt; {advice}",
        f"{tmp_path / 'c.png'} has no caption file c.txt (there is c.caption); {advice}",
        f"{tmp_path / 'd.png'} has no caption file d.txt (there is D.TXT); {advice}",
    ]


def test_class_tokens_stand_in_for_missing_captions(tmp_path):
    reading = read(tmp_path, {}, images=["a.png", "b.png"], class_tokens=DOGS)
    assert by_name(reading) == {"a.png": DOGS, "b.png": DOGS}
    assert reading.findings.notes == reading.findings.faults == ()


def test_pictures_without_caption_among_others_that_have_one_are_noted(tmp_path):
    images = [f"{number}.png" for number in range(8)]
    reading = read(tmp_path, {"3.txt": "text"}, images=images, class_tokens=DOGS)
    assert list(by_name(reading).values()) == [DOGS, DOGS, DOGS, "text", DOGS, DOGS, DOGS, DOGS]
    assert reading.findings.faults == ()
    assert reading.findings.notes == (
        f"{tmp_path}: pictures without caption file, trained with class_tokens although others have one: "
        "7 (0.png, 1.png, 2.png, 4.png, 5.png, ...)",
    )


@pytest.mark.parametrize(
    ("options", "used"),
    [({"class_tokens": DOGS}, "class_tokens"), ({"missing_caption": "allow"}, "empty captions")],
)
def test_captions_that_are_overlooked_are_named(tmp_path, options, used):
    texts = {"a.txt": "text", "b.caption": "x", "C.txt": "x", "d.TXT": "x", "e.json": "{}"}
    reading = read(tmp_path, texts, images=[f"{letter}.png" for letter in "abcde"], **options)
    assert reading.findings.faults == ()
    assert reading.findings.notes[0] == (
        f"{tmp_path}: files beside pictures without caption that may be theirs but have another ending or letter case, "
        f"so that {used} are used; rename them, or set caption_extension: 3 (b.caption, C.txt, d.TXT)"
    )
    assert len(reading.findings.notes) == 2


def test_the_caption_of_another_picture_is_no_hint(tmp_path):
    reading = read(tmp_path, {"a.txt": "text"}, images=["a.png", "A.png"], class_tokens=DOGS)
    assert by_name(reading) == {"a.png": "text", "A.png": DOGS}
    (note,) = reading.findings.notes
    assert "may be theirs" not in note


def test_missing_captions_may_be_allowed(tmp_path):
    images = [f"{number}.png" for number in range(8)]
    reading = read(tmp_path, {"3.txt": "text"}, images=images, missing_caption="allow")
    assert list(by_name(reading).values()) == ["", "", "", "text", "", "", "", ""]
    (note,) = reading.findings.notes
    assert note == (
        f"{tmp_path}: pictures without caption file and class_tokens, trained with an empty caption: "
        "7 (0.png, 1.png, 2.png, 4.png, 5.png, ...)"
    )


def test_captions_under_another_extension_are_a_problem(tmp_path):
    texts = {"a.txt": "text", "b.txt": "text", "c.cap": "x"}
    reading = read(tmp_path, texts, extension=".caption")
    assert reading.captions == {}
    assert reading.findings.faults == ()
    assert reading.findings.problems == (
        f'{tmp_path} has no .caption files but .txt files beside its pictures (2); set caption_extension = ".txt"',
    )


@pytest.mark.parametrize(
    ("options", "used"),
    [({"class_tokens": DOGS}, "class_tokens"), ({"missing_caption": "allow"}, "empty captions")],
)
def test_captions_under_another_extension_are_noted_where_something_stands_in(tmp_path, options, used):
    reading = read(tmp_path, {"a.txt": "text"}, extension=".caption", **options)
    assert set(by_name(reading).values()) == {options.get("class_tokens", "")}
    assert reading.findings.problems == ()
    assert f'{used} are used instead, unless caption_extension = ".txt" is set' in reading.findings.notes[0]


def test_other_text_files_are_no_hint(tmp_path):
    reading = read(tmp_path, {"readme.txt": "x", "a.json": "{}"}, images=["a.png"], extension=".caption")
    assert reading.findings.problems == ()
    assert len(reading.findings.faults) == 1


def test_two_pictures_cannot_share_a_caption(tmp_path):
    reading = read(tmp_path, {"a.txt": "text"}, images=["a.jpg", "a.png"])
    assert not reading.captions
    assert lines_of(reading) == [
        f"{tmp_path / 'a.jpg'} shares the caption file a.txt with a.png; rename one",
        f"{tmp_path / 'a.png'} shares the caption file a.txt with a.jpg; rename one",
    ]
    assert len(read(tmp_path, {}, images=["b.jpg", "b.png"], class_tokens=DOGS).captions) == 2


def test_equal_names_in_two_folders_have_captions_of_their_own(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "a.txt").write_text(folder.name, encoding="utf-8")
    subset = SubsetSpec(image_dir=tmp_path, caption_extension=".txt", recursive=True)
    names = {folder: frozenset(["a.txt"]) for folder in folders}
    reading = read_captions(subset, [folder / "a.png" for folder in folders], names)
    assert list(reading.captions.values()) == ["one", "two"]
    assert reading.findings.faults == ()


def test_folder_of_a_caption_name_is_a_fault(tmp_path):
    (tmp_path / "a.txt").mkdir(parents=True)
    reading = read(tmp_path, {}, images=["a.png"], class_tokens=DOGS)
    assert reading.captions == {}
    assert lines_of(reading) == [f"{tmp_path / 'a.txt'} is a folder, not a caption file; rename it"]


def test_file_that_is_gone_is_a_fault(tmp_path):
    subset = SubsetSpec(image_dir=tmp_path, caption_extension=".txt")
    reading = read_captions(subset, [tmp_path / "a.png"], {tmp_path: frozenset(["a.txt"])})
    (fault,) = reading.findings.faults
    assert str(fault).startswith(f"{tmp_path / 'a.txt'} cannot be read (No such file")
    assert fault.picture == tmp_path / "a.png"
