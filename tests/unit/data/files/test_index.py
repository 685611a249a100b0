"""What is remembered of pictures between runs."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from library.data.files.headers import PictureHeader
from library.data.files.index import PictureIndex, file_state
from library.records import Size

HEADER = PictureHeader(Size(40, 30), 6, 12, "CMYK", has_alpha=True)
STATE = (1000, 1_700_000_000_123_456_789, 1_700_000_000_987_654_321)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


def saved(place, *paths, state=STATE, header=HEADER):
    index = PictureIndex.open(place)
    for path in paths:
        index.remember(path, state, header)
    index.save()
    return index


def test_what_was_remembered_is_known_to_the_next_run(place):
    names = [Path("/data/a.png"), Path("/data/ü \udcff.png"), Path("/other/a.png")]
    saved(place, *names)
    index = PictureIndex.open(place)
    assert all(index.header(path, STATE) == HEADER for path in names)
    assert index.header(Path("/data/b.png"), STATE) is None
    assert not index.is_sound(names[0], STATE)
    assert len(list(place.iterdir())) == 2


@pytest.mark.parametrize("place_in_state", range(3))
def test_a_changed_file_is_unknown(place, place_in_state):
    state = tuple(value + (number == place_in_state) for number, value in enumerate(STATE))
    path = Path("/data/a.png")
    saved(place, path).remember_sound(path, STATE)
    index = PictureIndex.open(place)
    assert index.header(path, state) is None and not index.is_sound(path, state)


def test_soundness_is_remembered_until_the_file_changes(place):
    path = Path("/data/a.png")
    index = saved(place, path)
    index.remember_sound(path, STATE)
    index.save()
    index = PictureIndex.open(place)
    assert index.is_sound(path, STATE) and index.header(path, STATE) == HEADER
    index.remember(path, (5, 5, 5), HEADER)
    assert not index.is_sound(path, STATE) and not index.is_sound(path, (5, 5, 5))


def test_soundness_without_a_header_is_not_kept(place):
    index = PictureIndex.open(place)
    index.remember_sound(Path("/data/a.png"), STATE)
    index.save()
    assert not place.exists()


def test_deleted_files_are_forgotten(place):
    saved(place, Path("/data/a.png"), Path("/data/b.png"), Path("/other/b.png"))
    index = PictureIndex.open(place)
    index.keep_only(Path("/data"), ["a.png", "new.png"])
    index.save()
    index = PictureIndex.open(place)
    assert index.header(Path("/data/a.png"), STATE) == HEADER
    assert index.header(Path("/data/b.png"), STATE) is None
    assert index.header(Path("/other/b.png"), STATE) == HEADER


def test_nothing_is_written_where_nothing_changed(place):
    saved(place, Path("/data/a.png"))
    (file,) = place.iterdir()
    before = file.stat().st_ino, file.stat().st_mtime_ns
    index = PictureIndex.open(place)
    assert index.header(Path("/data/a.png"), STATE) == HEADER
    index.keep_only(Path("/data"), ["a.png"])
    index.save()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"version":2', '"version":99'),
        lambda text: text.replace("/data", "/elsewhere"),
        lambda text: text.replace("40,30", "40,-30"),
        lambda text: text.replace("40,30", '"40",30'),
        lambda text: text.replace("40,30", "40"),
        lambda text: text.replace('"CMYK"', "true"),
        lambda text: '{"version":2,"folder":"/data","files":[]}',
    ],
)
def test_a_damaged_or_foreign_index_is_made_again(place, damage, caplog):
    caplog.set_level("INFO", logger="easel")
    path = Path("/data/a.png")
    saved(place, path)
    (file,) = place.iterdir()
    file.write_text(damage(file.read_text()))
    index = PictureIndex.open(place)
    assert index.header(path, STATE) is None
    assert len(caplog.records) == 1 and "is made again" in caplog.text
    index.remember(path, STATE, HEADER)
    index.save()
    assert PictureIndex.open(place).header(path, STATE) == HEADER


def test_bytes_that_are_no_text_are_survived(place):
    saved(place, Path("/data/a.png"))
    (file,) = place.iterdir()
    file.write_bytes(b"\xff\xfe\0\1" * 50)
    assert PictureIndex.open(place).header(Path("/data/a.png"), STATE) is None


def test_a_place_that_cannot_be_written_does_no_harm(tmp_path, caplog):
    caplog.set_level("DEBUG", logger="easel")
    (tmp_path / "file").write_text("x")
    index = saved(tmp_path / "file" / "index", Path("/data/a.png"), Path("/other/a.png"))
    assert index.header(Path("/data/a.png"), STATE) == HEADER
    assert [record.levelname for record in caplog.records if "cannot be written" in record.message] == ["DEBUG"]


def test_the_usual_place_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EASEL_CACHE_DIR", str(tmp_path / "cache"))
    saved(None, Path("/data/a.png"))
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 1


def test_relative_and_absolute_names_are_the_same_folder(tmp_path, place, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    saved(place, Path("data/a.png"))
    assert PictureIndex.open(place).header(tmp_path / "data" / "a.png", STATE) == HEADER


def test_what_another_process_found_is_kept(place):
    paths = [Path(f"/data/{name}.png") for name in "abc"]
    saved(place, *paths)
    first, second = PictureIndex.open(place), PictureIndex.open(place)
    for index, path in ((first, paths[0]), (second, paths[1])):
        index.remember_sound(path, STATE)
    first.save()
    second.keep_only(Path("/data"), ["a.png", "b.png"])
    second.save()
    index = PictureIndex.open(place)
    assert index.is_sound(paths[0], STATE) and index.is_sound(paths[1], STATE)
    assert index.header(paths[2], STATE) is None


def test_many_writers_leave_a_whole_file(place):
    def write(number):
        saved(place, *(Path(f"/data/{number}-{item}.png") for item in range(50)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(24)))
    (file,) = place.iterdir()
    assert len(json.loads(file.read_text())["files"]) >= 50


def test_the_state_of_a_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 1_600_000_000_000_000_001))
    stat = path.stat()
    assert file_state(path) == (5, stat.st_mtime_ns, stat.st_ctime_ns)


def test_what_was_forgotten_is_unknown_to_the_next_run(place):
    paths = [Path(f"/data/{name}.png") for name in "ab"]
    saved(place, *paths)
    index = PictureIndex.open(place)
    index.forget(paths[0])
    index.forget(Path("/data/never.png"))
    index.save()
    index = PictureIndex.open(place)
    assert index.header(paths[0], STATE) is None and index.header(paths[1], STATE) == HEADER
