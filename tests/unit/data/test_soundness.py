"""Decoding before training: which pictures are broken behind an intact header."""

from pathlib import Path

from PIL import Image

from library.data.soundness import broken_pictures
from library.records import ImageRecord, Size


def record(path: Path, size: tuple[int, int] = (64, 48)) -> ImageRecord:
    return ImageRecord(path=path, key=path.name, caption="", size=Size(*size), repeats=1, dataset=0, subset=0)


def picture(path: Path, *, is_broken: bool = False) -> Path:
    Image.effect_noise((64, 48), 50).save(path)
    if is_broken:
        data = bytearray(path.read_bytes())
        data[80:120] = bytes(40)
        path.write_bytes(data)
    return path


def test_every_broken_picture_is_named_once(tmp_path):
    broken = [picture(tmp_path / f"{letter}.png", is_broken=True) for letter in "ab"]
    whole = picture(tmp_path / "c.png")
    problems = broken_pictures([record(path) for path in (*broken, whole, *broken)])
    assert [problem.split(" cannot be decoded")[0] for problem in problems] == [str(path) for path in broken]
    assert not any(problem.endswith(".") for problem in problems)


def test_a_picture_that_has_changed_its_size_is_named(tmp_path):
    path = picture(tmp_path / "a.png")
    assert broken_pictures([record(path)]) == []
    (problem,) = broken_pictures([record(path, (32, 32))])
    assert str(path) in problem and "64x48" in problem


def test_many_pictures_are_all_decoded(tmp_path):
    path, broken = picture(tmp_path / "a.png"), picture(tmp_path / "z.png", is_broken=True)
    copies = [path.rename(tmp_path / "0.png")]
    for number in range(1, 250):
        copy = tmp_path / f"{number}.png"
        copy.hardlink_to(copies[0])
        copies.append(copy)
    assert len(broken_pictures([record(item) for item in (*copies, broken)], is_shown=False)) == 1
