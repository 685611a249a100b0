"""Where missing folders are looked for."""

from pathlib import Path

from library.data.files.missing import nearest_folder, place_hint


def test_a_folder_of_almost_this_name_is_the_nearest(tmp_path):
    (tmp_path / "clean").mkdir()
    (tmp_path / "claem").touch()  # a file is no folder
    assert nearest_folder(tmp_path / "claen") == tmp_path / "clean"
    assert nearest_folder(tmp_path / "claen" / "cats") == tmp_path / "clean"
    assert place_hint(tmp_path / "claen", "data.toml") == f"; the nearest folder that does is {tmp_path / 'clean'}"


def test_else_it_is_the_innermost_one_above(tmp_path):
    (tmp_path / "other").mkdir()
    assert nearest_folder(tmp_path / "none" / "deep") == tmp_path


def test_a_relative_folder_may_lie_beside_the_dataset_file(tmp_path, monkeypatch):
    (tmp_path / "data" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hint = f" in the current folder {tmp_path}, where paths start; it is at {Path('data/cats')}"
    assert place_hint(Path("cats"), "data/set.toml") == hint
