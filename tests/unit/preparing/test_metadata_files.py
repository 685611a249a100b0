"""Metadata files are read whole and strictly, and written so that a training reads them."""

import json

import pytest

from library.errors import DatasetError, OptionError, OutputError
from library.preparing.metadata.metadata_files import (
    check_output,
    read_metadata_file,
    write_metadata_file,
)

ENTRIES = {
    "b10.png": {"caption": "größer\nzwei", "image_size": [4, 2], "mine": {"deep": [1, None, 0.5]}},
    "b2.png": {"tags": "a, b"},
    "sub/ü.png": {},
}


@pytest.mark.parametrize("ending", ["json", "jsonl", "JSONL"])
def test_what_is_written_is_read_again_with_all_keys_and_in_natural_order(tmp_path, ending):
    file = tmp_path / f"m.{ending}"
    write_metadata_file(file, ENTRIES)
    read = read_metadata_file(file, "IN_JSON")
    assert read == ENTRIES
    assert list(read) == ["b2.png", "b10.png", "sub/ü.png"]
    assert "größer" in file.read_text("utf-8")


def test_one_kind_becomes_the_other(tmp_path):
    write_metadata_file(tmp_path / "m.jsonl", ENTRIES)
    write_metadata_file(tmp_path / "m.json", read_metadata_file(tmp_path / "m.jsonl", "IN_JSON"))
    assert json.loads((tmp_path / "m.json").read_text("utf-8")) == ENTRIES


def test_json_is_indented_by_two(tmp_path):
    write_metadata_file(tmp_path / "m.json", {"a.png": {"caption": "a"}})
    assert (tmp_path / "m.json").read_text() == '{\n  "a.png": {\n    "caption": "a"\n  }\n}\n'


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_names_that_are_not_utf8_survive(tmp_path, ending):
    entries = {"\udcff.png": {"caption": "a", "other": "\ud800"}}
    write_metadata_file(tmp_path / f"m.{ending}", entries)
    assert read_metadata_file(tmp_path / f"m.{ending}", "IN_JSON") == entries


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.json", "{", "IN_JSON: .*m.json is not JSON"),
        ("m.json", "[]", "must hold an object of names"),
        ("m.json", '{"a": {"tags": ["b"]}}', 'entry "a": tags must be a text'),
        ("m.json", '{"a": {"image_size": [1, 2.5]}}', "image_size must be"),
        ("m.json", '{"a": {}, "a": {}}', 'has "a" twice'),
        (
            "m.json",
            '{"a": {"score": [1, 1e400]}}',
            r'entry "a": score holds a number that JSON cannot hold \(\[1, inf\]\)',
        ),
        ("m.jsonl", '{"image_path": "a", "score": NaN}', 'entry "a": score holds a number that JSON cannot hold'),
        ("m.jsonl", '{"image_path": "a"}\n{"image_path": "a"}', 'has "a" twice'),
        ("m.jsonl", '{"image_path": "a"}\n{"file_name": "b"}', "line 2 has no image_path"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_metadata_file(tmp_path / name, "IN_JSON")


def test_a_missing_file_is_named_as_the_user_gave_it(tmp_path):
    with pytest.raises(DatasetError, match=r"^--in_json: .*gone.json does not exist.*\.$"):
        read_metadata_file(tmp_path / "gone.json", "--in_json")


def test_an_entry_that_training_refuses_is_not_written(tmp_path):
    with pytest.raises(DatasetError, match='entry "a": caption must be a text'):
        write_metadata_file(tmp_path / "m.json", {"a": {"caption": 3}})
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_json_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(DatasetError, match='entry "a": score holds a number'):
        write_metadata_file(tmp_path / "m.json", {"a": {"score": float("inf")}})
    assert list(tmp_path.iterdir()) == []


def test_a_line_has_no_room_for_a_key_image_path_of_its_own(tmp_path):
    with pytest.raises(DatasetError, match=r"key image_path of its own \('b'\)"):
        write_metadata_file(tmp_path / "m.jsonl", {"a": {"image_path": "b"}})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "m.json"
    file.write_text("{}")

    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OutputError, match="No space left"):
        write_metadata_file(file, ENTRIES)
    assert file.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("place", "message"),
    [("m.txt", "must end in .json or .jsonl"), ("no/m.json", "folder .*no does not exist"), ("d.json", "is a folder")],
)
def test_places_that_cannot_be_written_are_refused(tmp_path, place, message):
    (tmp_path / "d.json").mkdir()
    with pytest.raises(OptionError, match=message):
        check_output(tmp_path / place)
