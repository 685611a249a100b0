"""What --fix changes: nothing is lost, nothing is overwritten, and the log says how to undo it."""

import errno
import json
import os
from pathlib import Path

import pytest

from library.data.files.fixing import FOLDER, LOG, Remedy, mend
from library.errors import OutputError


def log_of(folder):
    return [json.loads(line) for line in (folder / FOLDER / LOG).read_text(encoding="utf-8").splitlines()]


def test_a_file_is_moved_aside_and_the_log_undoes_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a dog")
    (mended,) = mend([Remedy("set aside", path)])
    assert not path.exists() and mended.place.read_text() == "a dog"
    (line,) = log_of(tmp_path)
    assert (line["action"], line["from"], line["to"]) == ("set aside", "a.txt", f"{FOLDER}/a.txt")
    (tmp_path / line["to"]).rename(tmp_path / line["from"])
    assert path.read_text() == "a dog"


def test_files_of_one_name_do_not_replace_each_other_aside(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("one", "two"):
        path.write_text(content)
        mend([Remedy("set aside", path)])
    kept = sorted((tmp_path / FOLDER).glob("*.txt"))
    assert [file.read_text() for file in kept] == ["two", "one"]  # "a (2).txt", "a.txt"
    assert len(log_of(tmp_path)) == 2


@pytest.mark.parametrize(("mark", "encoding"), [("utf-16", None), ("utf-8-sig", None), ("cp1252", "cp1252")])
def test_a_text_is_saved_as_utf8_with_its_line_ends_and_kept_as_it_was(tmp_path, mark, encoding):
    path = tmp_path / "a.txt"
    before = "ein Café\r\nzweite Zeile".encode(mark)
    path.write_bytes(before)
    (mended,) = mend([Remedy("saved as UTF-8", path, encoding=encoding)])
    assert path.read_bytes() == "ein Café\r\nzweite Zeile".encode()
    assert mended.place.read_bytes() == before


def test_an_ending_is_renamed_unless_the_name_is_taken(tmp_path):
    for name in ("a.TXT", "b.TXT", "b.txt"):
        (tmp_path / name).write_text(name)
    mend([Remedy("renamed", tmp_path / "a.TXT", tmp_path / "a.txt")])
    assert (tmp_path / "a.txt").read_text() == "a.TXT"
    with pytest.raises(OutputError, match=r"b\.TXT cannot be renamed \(b\.txt is there already\)"):
        mend([Remedy("renamed", tmp_path / "b.TXT", tmp_path / "b.txt")])
    assert (tmp_path / "b.txt").read_text() == "b.txt"


def test_a_file_that_two_findings_are_about_is_changed_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode("utf-16"))
    done = mend([Remedy("set aside", path), Remedy("saved as UTF-8", path), Remedy("set aside", tmp_path / "gone")])
    assert [each.action for each in done] == ["set aside"]


@pytest.mark.parametrize("action", ["set aside", "renamed"])
def test_a_move_that_is_broken_off_is_in_the_log_and_loses_nothing(tmp_path, monkeypatch, action):
    path = tmp_path / "a.TXT"
    path.write_text("a dog")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: 1 / 0)  # the kill comes before the last step
    with pytest.raises(ZeroDivisionError):
        mend([Remedy(action, path, tmp_path / "a.txt" if action == "renamed" else None)])
    (line,) = log_of(tmp_path)
    assert path.read_text() == (tmp_path / line["to"]).read_text() == "a dog"


def test_a_drive_without_links_does_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", without_links)
    (tmp_path / "a.png").write_text("picture")
    (tmp_path / "b.png").symlink_to("a.png")
    mend([Remedy("set aside", tmp_path / "b.png"), Remedy("set aside", tmp_path / "a.png")])
    aside = tmp_path / FOLDER
    assert list(tmp_path.iterdir()) == [aside]
    assert (aside / "b.png").is_symlink() and (aside / "a.png").read_text() == "picture"
    for name in ("c.TXT", "c.txt"):
        (tmp_path / name).write_text(name)
    with pytest.raises(OutputError, match="cannot be renamed"):
        mend([Remedy("renamed", tmp_path / "c.TXT", tmp_path / "c.txt")])
    assert (tmp_path / "c.txt").read_text() == "c.txt"


def without_links(*_, **__):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
