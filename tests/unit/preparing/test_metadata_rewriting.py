"""What is in a metadata file that is written over is not lost, nor what a person writes into one meanwhile."""

import pytest

from library.errors import DatasetError
from library.preparing.metadata.metadata_files import read_metadata_file, write_metadata_file
from library.preparing.metadata.rewriting import Rewriting

OLD = {"a": {"caption": "by hand", "mine": 1, "image_size": [4, 2]}, "b": {"tags": ""}}


@pytest.fixture
def files(tmp_path):
    """in.json, and an out.json that is there already."""
    write_metadata_file(tmp_path / "in.json", {"c": {}})
    write_metadata_file(tmp_path / "out.json", OLD)
    return tmp_path / "in.json", tmp_path / "out.json"


def rewriting(source, out, is_overwrite=False):
    started = Rewriting(source, "IN_JSON", out, is_overwrite=is_overwrite)
    started.read()
    return started


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"a": OLD["a"]}, "b"),
        ({**OLD, "a": {"mine": 1}}, r"a \(caption\)"),
        ({**OLD, "a": {**OLD["a"], "caption": "anew", "mine": 2}}, r"a \(caption, mine\)"),
        ({**OLD, "a": {**OLD["a"], "caption": ""}}, r"a \(caption\)"),
    ],
)
def test_a_file_is_not_written_over_where_it_has_what_the_new_one_has_not(files, changed, lost):
    with pytest.raises(DatasetError, match=rf"\(1\): {lost}\. Put it into .*in.json, give --overwrite"):
        rewriting(*files).write(changed)
    assert read_metadata_file(files[1], "") == OLD


def test_a_file_is_written_over_where_nothing_goes_but_what_is_measured(files):
    new = {"a": {"caption": "by hand", "mine": 1, "image_size": [8, 8], "tags": "x"}, "b": {"tags": "y"}, "c": {}}
    rewriting(*files).write(new)
    assert read_metadata_file(files[1], "") == new


def test_with_overwrite_it_goes_and_is_told(files, capsys, caplog):
    rewriting(*files, is_overwrite=True).write({"a": OLD["a"]})
    assert read_metadata_file(files[1], "") == {"a": OLD["a"]}
    assert "is written over, with what only it had: 1 (b)." in caplog.text


def test_the_source_itself_may_lose_anything(files):
    rewriting(files[1], files[1]).write({"a": {"caption": "mended"}})
    assert read_metadata_file(files[1], "") == {"a": {"caption": "mended"}}


@pytest.mark.parametrize("is_overwrite", [False, True])
def test_a_file_of_another_kind_is_never_written_over(files, is_overwrite):
    files[1].write_text('{"epochs": 3}')
    with pytest.raises(DatasetError, match="OUT_JSON: .*must be an object"):
        rewriting(*files, is_overwrite=is_overwrite).write({})
    assert files[1].read_text() == '{"epochs": 3}'


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_that_was_changed_meanwhile_is_not_written_over(files, place):
    started = rewriting(*files, is_overwrite=True)
    write_metadata_file(files[place], {"a": {"caption": "corrected meanwhile"}})
    before = files[1].read_bytes()
    with pytest.raises(DatasetError, match=rf"^\w+ {files[place]} changed while this ran, so nothing was written"):
        started.write(OLD)
    assert files[1].read_bytes() == before


def test_a_file_that_appeared_meanwhile_is_not_written_over(tmp_path):
    started = rewriting(None, tmp_path / "out.json")
    write_metadata_file(tmp_path / "out.json", OLD)
    with pytest.raises(DatasetError, match="changed while this ran"):
        started.write({})
    assert read_metadata_file(tmp_path / "out.json", "") == OLD


def test_what_was_read_again_counts_as_known(files):
    started = rewriting(files[1], files[1])
    write_metadata_file(files[1], {"a": {"caption": "corrected meanwhile"}})
    started.write(started.read() | {"b": {}})
    assert read_metadata_file(files[1], "") == {"a": {"caption": "corrected meanwhile"}, "b": {}}
