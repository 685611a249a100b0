"""Quick headers of ordinary files agree with Pillow's, and what is not ordinary is left to it."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.data.files.plain_headers import PlainHeader, plain_header


def saved(mode="RGB", size=(37, 21), kind="PNG", **arguments):
    file = BytesIO()
    Image.new(mode, size).save(file, kind, **arguments)
    return file.getvalue()


def as_pillow_sees(data):
    with Image.open(BytesIO(data)) as image:
        return PlainHeader(*image.size, image.mode, image.has_transparency_data)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("arguments", [{}, {"dpi": (72, 72)}, {"icc_profile": b"x" * 100}])
def test_png(mode, arguments):
    data = saved(mode, **arguments)
    assert plain_header(data[:4096]) == as_pillow_sees(data)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palettes_and_transparent_colours(bits):
    for arguments in ({}, {"transparency": 0}):
        data = saved("P", bits=bits, **arguments)
        assert plain_header(data) == as_pillow_sees(data)
    data = saved("RGB", transparency=(0, 0, 0))
    assert plain_header(data) == as_pillow_sees(data) and plain_header(data).has_alpha


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"progressive": True}, {"dpi": (72, 72)}, {"icc_profile": b"x" * 500}, {"comment": b"x"}, {"subsampling": 0}],
)
def test_jpeg(mode, arguments):
    data = saved(mode, kind="JPEG", **arguments)
    assert plain_header(data[:4096]) == as_pillow_sees(data)


def test_what_is_not_ordinary_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x/>")
    other = Image.new("RGB", (37, 21), "red")
    assert plain_header(saved(exif=exif)) is None
    assert plain_header(saved(pnginfo=text)) is None
    assert plain_header(saved(save_all=True, append_images=[other])) is None
    assert plain_header(saved(kind="JPEG", exif=exif)) is None
    assert plain_header(saved(kind="JPEG", xmp=b"<x/>")) is None
    assert plain_header(saved(kind="MPO", save_all=True, append_images=[other])) is None
    assert plain_header(saved(kind="JPEG", icc_profile=b"x" * 10_000)[:4096]) is None
    for kind in ("BMP", "GIF", "TIFF", "WEBP"):
        assert plain_header(saved(kind=kind)) is None


@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_damaged_starts_raise_nothing(kind, draw):
    data = bytearray(saved(kind=kind))
    for _ in range(draw.draw(st.integers(0, 5))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    found = plain_header(bytes(data[: draw.draw(st.integers(0, len(data)))]))
    assert found is None or (found.width > 0 and found.height > 0)
