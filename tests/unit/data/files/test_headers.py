"""Headers of image files: the size as seen, how pixels are stored, and files that are not whole."""

import errno
import struct
import zlib

import pytest
from PIL import Image, ImageOps, features

from library.data.files.headers import IMAGE_SUFFIXES, PictureHeader, read_header, read_orientation, why_unreadable
from library.errors import DatasetError
from library.records import Size

FORMATS = ["jpg", "png", "webp", "tiff"] + (["avif"] if features.check("avif") else [])
ALL_FORMATS = ["jpg", "png", "webp", "bmp", "tif", "gif", "tga", "ppm", "qoi", *FORMATS[4:]]


def save_image(path, size=(12, 8), orientation=None, mode="RGB", **arguments):
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        arguments["exif"] = exif
    Image.new(mode, size).save(path, **arguments)
    return path


def save_noise(path, **arguments):
    Image.effect_noise((64, 48), 60).convert("RGB").save(path, **arguments)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_size_is_the_one_seen(tmp_path, suffix, orientation):
    path = save_image(tmp_path / f"a.{suffix}", (48, 32), orientation)
    with Image.open(path) as image:
        seen = ImageOps.exif_transpose(image).size
    assert seen == ((32, 48) if (orientation or 1) >= 5 else (48, 32))
    header = read_header(path)
    assert (header.size, header.orientation) == (seen, orientation or 1)


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


@pytest.mark.parametrize("name", ["xmp.jpg", "xmp.png"])
def test_orientation_that_only_xmp_states(tmp_path, name):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if name.endswith("jpg"):
        path = save_image(tmp_path / name, (48, 32), xmp=xmp)
    else:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        path = save_image(tmp_path / name, (48, 32), pnginfo=info)
    with Image.open(path) as image:
        seen = ImageOps.exif_transpose(image).size
    assert read_header(path).size == seen == (32, 48)


def test_an_orientation_that_the_drive_does_not_give_is_not_taken_for_none(tmp_path, monkeypatch):
    path = save_image(tmp_path / "a.png", (48, 32))

    def failing_open(path, *arguments, **options):
        raise OSError(errno.EIO, "hiccup")

    with Image.open(path) as image:
        assert read_orientation(image, path) == 1
        monkeypatch.setattr(type(path), "open", failing_open)
        with pytest.raises(OSError, match="hiccup"):
            read_orientation(image, path)


@pytest.mark.parametrize("suffix", ALL_FORMATS)
def test_header_agrees_with_the_decoded_picture(tmp_path, suffix):
    path = save_noise(tmp_path / f"a.{suffix}")
    header = read_header(path)
    with Image.open(path) as image:
        image.load()
        assert header == PictureHeader(Size(64, 48), 1, 1, image.mode, has_alpha=False)


@pytest.mark.parametrize(
    ("name", "mode", "has_alpha"),
    [
        ("a.png", "RGBA", True),
        ("a.png", "LA", True),
        ("a.webp", "RGBA", True),
        ("a.tif", "RGBA", True),
        ("a.png", "I;16", False),
        ("a.jpg", "CMYK", False),
        ("a.jpg", "L", False),
        ("a.tif", "F", False),
        ("a.png", "P", False),
        ("a.png", "1", False),
    ],
)
def test_how_pixels_are_stored(tmp_path, name, mode, has_alpha):
    header = read_header(save_image(tmp_path / name, mode=mode))
    assert (header.mode, header.has_alpha) == (mode, has_alpha)


def test_a_transparent_colour_is_transparency(tmp_path):
    assert read_header(save_image(tmp_path / "a.png", mode="P", transparency=0)).has_alpha
    assert read_header(save_image(tmp_path / "a.gif", mode="P", transparency=0)).has_alpha


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", *FORMATS[4:]])
def test_frames_are_counted_and_the_size_is_exact(tmp_path, suffix):
    frames = [Image.effect_noise((640, 480), 10 + number).convert("RGB") for number in range(3)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    header = read_header(path)
    assert (header.frames, header.size) == (3, Size(640, 480))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif", *FORMATS[4:]])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_cut_files_are_noticed(tmp_path, suffix, share):
    path = save_noise(tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DatasetError, match=r"a\.\w+ is cut off \(its end is missing\); replace or remove it$"):
        read_header(path)


def test_a_thumbnail_is_not_the_end_of_the_picture(tmp_path):
    path = save_noise(tmp_path / "a.jpg")
    data = path.read_bytes()
    thumbnail = b"\xff\xe1\x00\x06\xff\xd8\xff\xd9"  # an end mark inside the header
    path.write_bytes(data[:2] + thumbnail + data[2:-20])
    with pytest.raises(DatasetError, match="is cut off"):
        read_header(path)


def test_bitmaps_and_tiffs_of_other_layouts_are_whole(tmp_path):
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        assert read_header(save_image(tmp_path / f"{mode}.bmp", (13, 7), mode=mode)).size == Size(13, 7)
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"):
        path = save_image(tmp_path / f"{compression}.tif", (200, 300), compression=compression)
        assert read_header(path).size == Size(200, 300)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_data_after_the_end_is_allowed(tmp_path, suffix):
    path = save_image(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes() + b"\0" * 100_000)
    assert read_header(path).size == Size(12, 8)


def test_a_picture_that_pillow_finds_too_large_has_a_size(tmp_path):
    path = save_image(tmp_path / "huge.png")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20000, 10000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    assert read_header(path).size == Size(20000, 10000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"0123456789", "is damaged or not an image"),
        (b"\n<html><body>404", "is not an image (it starts with '<html><bo')"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not an image but a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30 + b"IEND\0\0\0\0", "is damaged or not an image"),
        (b"GIF89a\1", "is cut off"),
        (b"II*\0\xff\xff\xff\x7f" + b"\0" * 50, "is cut off"),
        (b"MM\0*\0\0\0\x08" + b"\0" * 50, "is damaged or not an image"),
    ],
    ids=["empty", "text", "page", "pointer", "png", "gif", "cut tiff", "tiff"],
)
def test_what_is_no_picture(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path} {reason}")
    assert not str(caught.value).endswith(".")


def test_types_are_told_by_content_not_by_name(tmp_path):
    path = save_image(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_header(path).size == Size(12, 8)


def test_which_types_this_pillow_reads():
    assert why_unreadable(".png") is None and why_unreadable(".JPG") is None
    assert (why_unreadable(".avif") is None) == features.check("avif")
    for suffix in IMAGE_SUFFIXES:
        reason = why_unreadable(suffix)
        assert reason is None or (suffix in reason and not reason.endswith("."))
