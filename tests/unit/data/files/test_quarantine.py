"""Moving unusable pictures out of the way."""

from __future__ import annotations

from library.data.files.quarantine import FOLDER, quarantine
from library.data.findings import Fault


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(folder, *names):
    for name in names:
        (folder / name).write_text(f"content of {name}")


def test_a_picture_moves_with_its_caption(tmp_path):
    write(tmp_path, "a.png", "a.txt", "ab.txt", "b.png", "b.txt")
    moved = quarantine([Fault(tmp_path / "a.png", "is broken")])
    assert files(tmp_path) == {
        f"{FOLDER}/a.png": "content of a.png",
        f"{FOLDER}/a.txt": "content of a.txt",
        "ab.txt": "content of ab.txt",
        "b.png": "content of b.png",
        "b.txt": "content of b.txt",
    }
    assert [(old.name, new.parent.name) for old, new in moved] == [("a.png", FOLDER), ("a.txt", FOLDER)]


def test_a_fault_of_the_caption_moves_both(tmp_path):
    write(tmp_path, "a.png", "a.txt")
    quarantine([Fault(tmp_path / "a.txt", "has no text", tmp_path / "a.png")])
    assert sorted(files(tmp_path)) == [f"{FOLDER}/a.png", f"{FOLDER}/a.txt"]


def test_a_caption_that_another_picture_uses_stays(tmp_path):
    write(tmp_path, "a.png", "a.jpg", "a.txt")
    quarantine([Fault(tmp_path / "a.png", "is broken")])
    assert sorted(files(tmp_path)) == [f"{FOLDER}/a.png", "a.jpg", "a.txt"]


def test_only_caption_files_move_along(tmp_path):
    write(tmp_path, "a.png", "a.TXT", "a.psd", "a.json", "a.note")
    (tmp_path / "a").mkdir()
    (tmp_path / "a.caption").mkdir()
    write(tmp_path, "a/inner.txt")
    quarantine([Fault(tmp_path / "a.png", "is broken")], caption_extensions=[".Note"])
    assert sorted(files(tmp_path)) == [
        *(f"{FOLDER}/a.TXT", f"{FOLDER}/a.note", f"{FOLDER}/a.png"),
        *("a.json", "a.psd", "a/inner.txt"),
    ]
    assert (tmp_path / "a.caption").is_dir()


def test_pictures_that_are_used_stay_under_whatever_name(tmp_path, caplog):
    write(tmp_path, "a.png", "a.txt", "b.png", "c.png")
    (tmp_path / "link.png").symlink_to("b.png")
    faults = [Fault(tmp_path / f"{name}.png", "has no text") for name in "abc"]
    moved = quarantine(faults, used=[tmp_path / "a.png", tmp_path / "link.png"])
    assert [old.name for old, _ in moved] == ["c.png"]
    assert "not moved, as another subset uses them: 2 (a.png, b.png)" in caplog.text


def test_nothing_in_quarantine_is_overwritten(tmp_path):
    (tmp_path / FOLDER).mkdir()
    write(tmp_path, f"{FOLDER}/a.png", "a.png")
    quarantine([Fault(tmp_path / "a.png", "is broken")])
    assert sorted(files(tmp_path)) == [f"{FOLDER}/a (2).png", f"{FOLDER}/a.png"]


def test_a_picture_that_is_gone_is_passed_over(tmp_path):
    assert quarantine([Fault(tmp_path / "a.png", "is gone")]) == []
