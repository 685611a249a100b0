"""Hashes of many pictures: what was looked at before a check was ended is not looked at again."""

from pathlib import Path

import pytest
from PIL import Image

from library.data.files.hash_index import HashIndex
from library.data.files.index import PictureIndex
from library.records import ImageRecord, Size
from library.training.looking.hashing import hash_pictures


@pytest.fixture
def records(tmp_path):
    found = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (32, 32), (number * 40, 90, 0)).save(path)
        found.append(ImageRecord(path, path.name, "", Size(32, 32), 1, 0, 0))
    return found


class Counted(HashIndex):
    """Counts how often it is saved."""

    times = 0

    def save(self):
        self.times += 1
        super().save()


@pytest.mark.parametrize(("saved_every", "times"), [(2, 4), (100, 1)])
def test_hashes_are_saved_on_the_way(tmp_path, records, saved_every, times):
    memory = Counted(tmp_path / "memory")
    hashes = hash_pictures(records, PictureIndex.open(tmp_path / "memory"), memory, saved_every=saved_every)
    assert list(hashes) == [record.path for record in records]
    assert memory.times == times  # at the end too


def test_a_check_that_is_interrupted_goes_on_where_it_was(tmp_path, records, monkeypatch):
    opened, real = [], Image.open

    def interrupted(file, *rest):
        if Path(file.name).name == "4.png":
            raise KeyboardInterrupt
        return real(file, *rest)

    def noted(file, *rest):
        opened.append(Path(file.name).name)
        return real(file, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hash_pictures(records, PictureIndex.open(tmp_path / "memory"), HashIndex(tmp_path / "memory"))
    monkeypatch.setattr(Image, "open", noted)
    hash_pictures(records, PictureIndex.open(tmp_path / "memory"), HashIndex(tmp_path / "memory"))
    assert sorted(opened) == ["4.png", "5.png"]
