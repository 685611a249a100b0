"""Scanning folders: pictures, sizes, captions, and everything that can be wrong with them."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageOps, features

from library.data.captions import CaptionRules
from library.data.headers import read_header
from library.data.scan import natural_order, scan_datasets
from library.data.specs import DatasetSpec, SubsetSpec
from library.errors import DatasetError
from library.records import Size

FORMATS = ["jpg", "png", "webp", "tiff"] + (["avif"] if features.check("avif") else [])


def save_image(path, size=(12, 8), orientation=None, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (200, 100, 50))
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        arguments["exif"] = exif
    image.save(path, **arguments)
    return path


def scan(*folders, source="data.toml", **options):
    subsets = tuple(SubsetSpec(image_dir=folder, **options) for folder in folders)
    return scan_datasets([DatasetSpec(resolution=Size(64, 64), subsets=subsets)], source)


def error_of(*folders, **options):
    with pytest.raises(DatasetError) as caught:
        scan(*folders, **options)
    return str(caught.value)


def test_pictures_of_all_types_in_natural_order(tmp_path):
    names = ["img10.PNG", "img2.Jpg", "img1.webp", "b.bmp", "c.gif", "D.tif", "e.JPEG", "f.jfif"]
    for name in names:
        save_image(tmp_path / "folder" / name, format="JPEG" if name.endswith("jfif") else None)
    for name in (".hidden.png", "._a.jpg", "notes.md", "Thumbs.db"):
        (tmp_path / "folder" / name).write_bytes(b"x")
    save_image(tmp_path / "folder" / "sub.png" / "inner.png")
    records = scan(tmp_path / "folder", class_tokens="sks dog", num_repeats=3)
    assert [r.path.name for r in records] == [
        "b.bmp",
        "c.gif",
        "D.tif",
        "e.JPEG",
        "f.jfif",
        "img1.webp",
        "img2.Jpg",
        "img10.PNG",
    ]
    assert [r.key for r in records] == [f"folder/{r.path.name}" for r in records]
    assert {(r.caption, r.size, r.repeats, r.dataset, r.subset) for r in records} == {("sks dog", Size(12, 8), 3, 0, 0)}


def test_natural_order():
    assert sorted(["a10", "a9", "A1", "b", "1"], key=natural_order) == ["1", "A1", "a9", "a10", "b"]
    assert sorted(["²", "a2", "2"], key=natural_order)[0] == "2"  # signs that look like digits are no numbers


@pytest.mark.parametrize("folder", ["with space", "br[1]", "日本 語 é"])
def test_any_folder_name(tmp_path, folder):
    save_image(tmp_path / folder / "a[2] ü.png")
    (tmp_path / folder / "a[2] ü.txt").write_text("caption é", encoding="utf-8")
    (record,) = scan(tmp_path / folder, caption_extension=".txt")
    assert (record.key, record.caption) == (f"{folder}/a[2] ü.png", "caption é")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_size_is_the_one_seen(tmp_path, suffix, orientation):
    path = save_image(tmp_path / f"a.{suffix}", (48, 32), orientation)
    with Image.open(path) as image:
        seen = ImageOps.exif_transpose(image).size
    assert seen == ((32, 48) if (orientation or 1) >= 5 else (48, 32))
    assert read_header(path).size == seen


def test_png_orientation_after_the_pixels(tmp_path):
    path = save_image(tmp_path / "a.png", (48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    with Image.open(path) as image:
        assert ImageOps.exif_transpose(image).size == (32, 48)
    assert read_header(path).size == Size(32, 48)


def test_turned_pictures_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", logger="easel")
    save_image(tmp_path / "a.jpg", orientation=6)
    save_image(tmp_path / "b.jpg")
    scan(tmp_path, class_tokens="x")
    assert "pictures turned or mirrored as their EXIF orientation says: 1" in caplog.text


def test_broken_images_are_all_listed(tmp_path):
    folder = tmp_path / "folder"
    for suffix in ("jpg", "png", "webp"):
        path = save_image(folder / f"cut.{suffix}", (64, 64))
        path.write_bytes(path.read_bytes()[:-20])
    jpeg = save_image(folder / "cut_with_thumbnail.jpg", (64, 64))
    thumbnail = b"\xff\xe1\x00\x06\xff\xd8\xff\xd9"  # an end mark inside the header is not the picture's
    jpeg.write_bytes(jpeg.read_bytes()[:2] + thumbnail + jpeg.read_bytes()[2:-20])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"\n<html><body>404")
    (folder / "noise.jpg").write_bytes(b"0123456789")
    (folder / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    save_image(folder / "good.jpg")
    message = error_of(folder, class_tokens="x")
    lines = message.splitlines()
    assert lines[0] == "data.toml: 8 problems in the data:"
    for name, reason in {
        "cut.jpg": "is cut off",
        "cut.png": "is cut off",
        "cut.webp": "is cut off",
        "cut_with_thumbnail.jpg": "is cut off",
        "empty.png": "is empty (0 bytes)",
        "noise.jpg": "is damaged or not an image",
        "page.jpg": "is not an image (it starts with '<html><bo')",
        "pointer.png": "is not an image but a Git LFS pointer",
    }.items():
        assert any(line.startswith(f"  {folder / name} ") and reason in line for line in lines), name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_data_after_the_end_is_allowed(tmp_path, suffix):
    path = save_image(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes() + b"\0" * 100_000)
    assert read_header(path).size == Size(12, 8)


def test_huge_picture_is_named(tmp_path):
    path = save_image(tmp_path / "huge.png")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20000, 10000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    assert (
        error_of(tmp_path, class_tokens="x") == f"data.toml: {path} has more pixels than Pillow opens; make it smaller."
    )


def test_picture_of_a_type_pillow_lacks(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + b"\0" * 40)
    assert "cannot be read: the installed Pillow does not know .jxl" in error_of(tmp_path, class_tokens="x")


def test_captions(tmp_path):
    texts = {
        "bom": b"\xef\xbb\xbfwith mark",
        "blank": b"\n  \r\n  second line is the first \r\n",
        "lines": b"one\n\n two\nthree",
        "plain": "é, ü".encode(),
    }
    for name, data in texts.items():
        save_image(tmp_path / f"{name}.v1.png")
        (tmp_path / f"{name}.v1.txt").write_bytes(data)
    captions = {r.path.stem[:-3]: r.caption for r in scan(tmp_path, caption_extension=".txt")}
    assert captions == {"bom": "with mark", "blank": "second line is the first", "lines": "one", "plain": "é, ü"}
    records = scan(tmp_path, caption_extension=".txt", captions=CaptionRules(enable_wildcard=True))
    assert next(r.caption for r in records if "lines" in r.key) == "one\ntwo\nthree"


def test_further_lines_are_warned_about_once(tmp_path, caplog):
    for number in range(7):
        save_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("one\ntwo", encoding="utf-8")
    scan(tmp_path, caption_extension=".txt")
    assert caplog.text.count("several lines") == 1
    assert "7 (0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ..." in caplog.text


def test_unusable_captions_are_all_listed(tmp_path):
    texts = {"empty": b"", "blank": b" \n\n", "latin": "é".encode("latin-1"), "wide": "text".encode("utf-16")}
    for name, data in texts.items():
        save_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.caption").write_bytes(data)
    message = error_of(tmp_path)
    assert message.startswith("data.toml: 4 problems in the data:")
    assert "empty.caption has no text" in message
    assert "blank.caption has no text" in message
    assert "latin.caption is not UTF-8 (byte 0xe9 at 0)" in message
    assert "wide.caption is not UTF-8 (UTF-16)" in message


def test_captions_under_another_extension(tmp_path, caplog):
    for number in range(3):
        save_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("text", encoding="utf-8")
    message = error_of(tmp_path)
    assert f"{tmp_path} has no .caption files but .txt files beside its pictures (3)" in message
    assert 'set caption_extension = ".txt"' in message
    (tmp_path / "broken.png").write_bytes(b"")
    assert "2 problems in the data" in error_of(tmp_path)
    (tmp_path / "broken.png").unlink()
    assert {r.caption for r in scan(tmp_path, class_tokens="sks")} == {"sks"}
    assert "class_tokens are used instead" in caplog.text


def test_missing_captions_are_counted(tmp_path, caplog):
    for number in range(8):
        save_image(tmp_path / f"{number}.png")
    (tmp_path / "3.caption").write_text("text", encoding="utf-8")
    assert [r.caption for r in scan(tmp_path)] == ["", "", "", "text", "", "", "", ""]
    assert "without caption file and class_tokens" in caplog.text
    assert "7 (0.png, 1.png, 2.png, 4.png, 5.png, ..." in caplog.text


def test_two_pictures_share_a_caption(tmp_path):
    save_image(tmp_path / "a.jpg")
    save_image(tmp_path / "a.png")
    assert len(scan(tmp_path, class_tokens="x")) == 2
    (tmp_path / "a.caption").write_text("text", encoding="utf-8")
    assert "a.png and a.jpg share the caption file a.caption; rename one" in error_of(tmp_path, class_tokens="x")


def test_folders_without_pictures(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x", encoding="utf-8")
    save_image(tmp_path / "parent" / "child" / "a.png")
    file = save_image(tmp_path / "file.png")
    monkeypatch.chdir(tmp_path / "empty")
    message = error_of(
        tmp_path / "empty",
        tmp_path / "texts",
        tmp_path / "parent",
        tmp_path / "none" / "deep",
        file,
        Path("texts"),
        source=str(tmp_path / "data.toml"),
    )
    assert "6 problems in the data" in message
    assert f"{tmp_path / 'empty'} has no images, it is empty" in message
    assert f"{tmp_path / 'texts'} has no images; its files are 1 .txt" in message
    assert f"{tmp_path / 'parent'} has no images, only folders (child): name each in a subset" in message
    assert f"{tmp_path / 'none' / 'deep'} does not exist; the nearest folder that does is {tmp_path}" in message
    assert f"{file} is a file; name the folder it is in" in message
    assert f"image_dir texts does not exist in the current folder {tmp_path / 'empty'}" in message
    assert f"it is at {tmp_path / 'texts'}" in message


def test_files_of_other_picture_types_are_named(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    assert len(scan(tmp_path, class_tokens="x")) == 1
    assert "files of types that cannot be read are skipped: 1 (b.HEIC)" in caplog.text


def test_keys_are_unique_and_do_not_depend_on_where_the_data_is(tmp_path):
    keys = []
    for root in ("one", "two"):
        for folder in ("a/img", "b/img", "c"):
            save_image(tmp_path / root / folder / "x.png")
        folders = [tmp_path / root / folder for folder in ("a/img", "b/img", "c")]
        first = DatasetSpec(
            resolution=Size(64, 64), subsets=tuple(SubsetSpec(image_dir=f, class_tokens="t") for f in folders)
        )
        second = DatasetSpec(resolution=Size(32, 32), subsets=first.subsets[:1])
        keys.append([r.key for r in scan_datasets([first, second], "data.toml")])
    assert keys[0] == keys[1] == ["img/x.png", "0.1/img/x.png", "c/x.png", "1.0/img/x.png"]


def test_a_folder_in_two_datasets_is_warned_about_once(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    spec = DatasetSpec(resolution=Size(64, 64), subsets=(SubsetSpec(image_dir=tmp_path),))
    assert len(scan_datasets([spec, spec], "data.toml")) == 2
    assert "empty caption: 1 (a.png)" in caplog.text


def test_a_broken_image_in_two_datasets_is_listed_once(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    spec = DatasetSpec(resolution=Size(64, 64), subsets=(SubsetSpec(image_dir=tmp_path, class_tokens="t"),))
    with pytest.raises(DatasetError, match=r"^data.toml: .*a.png is empty \(0 bytes\); replace or remove it\.$"):
        scan_datasets([spec, spec], "data.toml")


def test_current_folder_has_its_name(tmp_path, monkeypatch):
    save_image(tmp_path / "mine" / "x.png")
    monkeypatch.chdir(tmp_path / "mine")
    assert scan(Path("."), class_tokens="t")[0].key == "mine/x.png"
