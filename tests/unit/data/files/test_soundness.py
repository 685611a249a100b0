"""Decoding before training: which pictures are broken behind an intact header."""

import errno
import io
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from library.data.files import patience
from library.data.files.headers import PictureHeader, read_header
from library.data.files.index import PictureIndex, file_state
from library.data.files.soundness import broken_pictures, check_pixels, num_never_decoded
from library.errors import UnreadableError
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


def break_without_a_trace(path: Path) -> None:
    """Neither the size nor the time that programs set tells."""
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:60].ljust(stat.st_size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def index(tmp_path):
    return PictureIndex.open(tmp_path / "index")


def test_every_broken_picture_is_named(tmp_path):
    broken = [picture(tmp_path / f"{letter}.png", is_broken=True) for letter in "ab"]
    whole = picture(tmp_path / "c.png")
    problems = broken_pictures([record(path) for path in (*broken, whole, *broken)])
    assert list(problems) == broken
    assert all(problem.startswith("cannot be decoded") for problem in problems.values())
    assert not any(problem.endswith(".") for problem in problems.values())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_that_has_changed_its_size_is_named(tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}")
    assert broken_pictures([record(path)]) == {}
    (problem,) = broken_pictures([record(path, (32, 32))]).values()
    assert "64x48" in problem


def test_a_turned_jpeg_is_sound(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    assert broken_pictures([record(tmp_path / "a.jpg", (48, 64))]) == {}


def test_a_picture_that_is_gone_is_named(tmp_path):
    assert list(broken_pictures([record(tmp_path / "a.png")])) == [tmp_path / "a.png"]


def test_many_pictures_are_all_decoded(tmp_path):
    path, broken = picture(tmp_path / "a.png"), picture(tmp_path / "z.png", is_broken=True)
    copies = [path.rename(tmp_path / "0.png")]
    for number in range(1, 250):
        copy = tmp_path / f"{number}.png"
        copy.hardlink_to(copies[0])
        copies.append(copy)
    assert list(broken_pictures([record(item) for item in (*copies, broken)], is_shown=False)) == [broken]


def decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("is_progressive", [False, True])
def test_damaged_jpegs_are_found_as_by_decoding_them_in_full(tmp_path, is_progressive):
    draw = random.Random(1)
    paths, expected = [], set()
    for number in range(60):
        buffer = io.BytesIO()
        Image.effect_noise((160, 120), 60).convert("RGB").save(buffer, "JPEG", progressive=is_progressive)
        data = bytearray(buffer.getvalue())
        if number % 3 == 0:
            del data[draw.randrange(700, len(data) - 2) :]
        elif number % 3 == 1:
            for _ in range(20):
                data[draw.randrange(200, len(data))] = draw.randrange(256)
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        paths.append(path)
        if not decodes(bytes(data)):
            expected.add(path)
    assert len(expected) >= 20
    assert set(broken_pictures([record(path, (160, 120)) for path in paths])) == expected


def test_sound_pictures_are_not_decoded_again(tmp_path, index):
    good, bad = picture(tmp_path / "good.png"), picture(tmp_path / "bad.png", is_broken=True)
    records = [record(good), record(bad)]
    for item in records:
        index.remember(item.path, file_state(item.path), read_header(item.path))
    assert list(broken_pictures(records, index)) == [bad]
    index = PictureIndex.open(tmp_path / "index")
    assert index.is_sound(good, file_state(good)) and not index.is_sound(bad, file_state(bad))
    assert list(broken_pictures([record(good, (1, 1)), *records], index)) == [bad]  # decoding would see another size
    break_without_a_trace(good)
    assert list(broken_pictures(records, index)) == [good, bad]


@pytest.mark.parametrize("is_broken", [False, True])
def test_headers_that_decoding_contradicts_are_forgotten(tmp_path, index, is_broken):
    path = picture(tmp_path / "a.png", is_broken=is_broken)
    index.remember(path, file_state(path), PictureHeader(Size(1, 1)))
    assert list(broken_pictures([record(path, (1, 1))], index)) == [path]
    assert PictureIndex.open(tmp_path / "index").header(path, file_state(path)) is None


def test_pictures_that_were_never_decoded_as_they_are_now_are_counted(tmp_path, index):
    paths = [picture(tmp_path / f"{name}.png") for name in "abc"]
    for path in paths:
        index.remember(path, file_state(path), read_header(path))
    records = [record(paths[0]), replace(record(paths[1]), mask=paths[2]), record(paths[1])]
    assert num_never_decoded(records, index) == 2
    assert broken_pictures([records[0], records[2]], index) == {}
    assert num_never_decoded(records, index) == 1  # its mask was not
    assert broken_pictures(records, index) == {}
    assert num_never_decoded(records, index) == 0
    Image.new("RGB", (9, 9)).save(paths[0])
    assert num_never_decoded(records, index) == 1


def test_a_damaged_mask_is_found_where_another_dataset_has_none(tmp_path):
    path, mask = picture(tmp_path / "a.png"), picture(tmp_path / "mask.png", is_broken=True)
    records = [replace(record(path), mask=mask), record(path)]
    for order in (records, records[::-1]):
        (problem,) = broken_pictures(order).values()
        assert problem.startswith(f"has a mask that cannot be used: {mask} cannot be decoded")


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.EIO, "Several attempts failed; look after the drive"), (errno.EACCES, "Make it readable")],
)
def test_what_the_drive_does_not_give_is_no_fault_of_a_picture(tmp_path, index, monkeypatch, code, advice):
    paths = [picture(tmp_path / f"{name}.png") for name in "abc"]
    for path in paths:
        index.remember(path, file_state(path), read_header(path))
    real_open = Path.open

    def failing_open(path, *arguments, **options):
        if path in paths[:2]:
            raise OSError(code, "hiccup")
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(patience, "PAUSES", (0.0,))
    monkeypatch.setattr(Path, "open", failing_open)
    with pytest.raises(UnreadableError) as caught:
        broken_pictures([record(path) for path in paths], index)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == [str(path) for path in paths[:2]]
    assert all(advice in line for line in lines)
    assert [index.is_sound(path, file_state(path)) for path in paths] == [False, False, True]
    assert index.header(paths[0], file_state(paths[0])) is not None


def test_masks_are_decoded_too(tmp_path, index):
    (tmp_path / "masks").mkdir()
    paths = [picture(tmp_path / f"{name}.png") for name in ("a", "b")]
    masks = [picture(tmp_path / "masks" / f"{path.name}", is_broken=path.stem == "b") for path in paths]
    records = [replace(record(path), mask=mask) for path, mask in zip(paths, masks, strict=True)]
    for path in (*paths, *masks):
        index.remember(path, file_state(path), read_header(path))
    ((path, problem),) = broken_pictures(records, index).items()
    assert path == paths[1]
    assert problem.startswith(f"has a mask that cannot be used: {masks[1]} cannot be decoded")
    break_without_a_trace(masks[0])
    assert list(broken_pictures(records, index)) == paths


def masked(folder: Path, mask: Image.Image, name: str) -> ImageRecord:
    (folder / "masks").mkdir(exist_ok=True)
    mask.save(folder / "masks" / f"{name}.png")
    return replace(record(picture(folder / f"{name}.png")), mask=folder / "masks" / f"{name}.png")


def test_masks_of_the_values_0_and_1_are_refused_and_those_of_one_bit_are_not(tmp_path):
    halves = Image.new("L", (64, 48))
    halves.paste(1, (0, 0, 32, 48))
    records = [masked(tmp_path, halves, "wrong"), masked(tmp_path, halves.point(lambda v: v, "1"), "right")]
    assert broken_pictures(records) == {
        tmp_path / "wrong.png": f"has a mask that cannot be used: {tmp_path / 'masks' / 'wrong.png'} is nearly black, "
        "with values of 0 and 1 out of 255; save it with 0 and 255"
    }


def test_black_masks_are_named_in_every_run(tmp_path, index):
    shades = {"black": 0, "dark": 2, "white": 255}
    records = [masked(tmp_path, Image.new("L", (64, 48), shade), name) for name, shade in shades.items()]
    for path in (path for item in records for path in (item.path, item.mask)):
        index.remember(path, file_state(path), read_header(path))
    for _ in range(2):
        found = check_pixels(records, index)
        assert (found.broken, found.black_masks) == ({}, (tmp_path / "masks" / "black.png",))
    assert index.is_sound(records[0].path, file_state(records[0].path))
    assert index.is_sound(records[2].mask, file_state(records[2].mask))
