"""Pictures of every kind become upright 8-bit RGB, and crops are what the plan says."""

import errno
import struct

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from library.data.files import patience
from library.data.files.headers import read_header
from library.data.pixels.images import load_image, load_mask, load_resized, prepare_image, resize_pixels
from library.errors import DatasetError, UnreadableError
from library.records import INTERPOLATIONS, CropPlan, Size

ORIENTATION = 0x0112


def corner_picture(width=30, height=20):
    """Black, with the top left quarter red and the top right quarter green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    return Image.fromarray(pixels)


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save_turned(upright, path, orientation, **options):
    """Save a picture as a camera held another way does."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = upright.transpose(UNDO[orientation]) if orientation > 1 else upright
    stored.save(path, exif=exif, **options)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = corner_picture()
    path = tmp_path / f"a{suffix}"
    save_turned(upright, path, orientation, **({"lossless": True} if suffix == ".webp" else {}))
    loaded = load_image(path, read_header(path).size)
    assert loaded.size == upright.size
    assert np.array_equal(np.asarray(loaded), np.asarray(upright))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.array([[0, 20000, 65535]], np.uint16)).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[0] * 3, [78] * 3, [255] * 3]]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colours_are_scaled(tmp_path, suffix):
    """Pillow drops the lower byte: one level from the rounded value at most."""
    path = tmp_path / f"a{suffix}"
    rgb = np.array([[[0, 20000, 65535], [300, 40000, 1000]]], np.uint16)
    cv2.imwrite(str(path), rgb[..., ::-1])
    assert np.abs(np.asarray(load_image(path)) - rgb / 257).max() <= 1


@pytest.mark.parametrize("alpha", [0, 65535])
def test_16_bit_transparency_counts(tmp_path, alpha):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.array([[[0, 0, 65535, alpha]]], np.uint16))
    assert np.asarray(load_image(path)).tolist() == [[[255, 0, 0] if alpha else [255, 255, 255]]]


@pytest.mark.parametrize(("values", "expected"), [([0, 0.5, 1], [0, 128, 255]), ([0, 128, 255], [0, 128, 255])])
def test_float_pictures_are_scaled_by_their_range(tmp_path, values, expected):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([values], np.float32)).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


def test_float_picture_of_unknown_range_is_refused(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[-3.0, 4.0]], np.float32)).save(path)
    with pytest.raises(DatasetError, match=r"a\.tiff cannot be decoded \(its grey values go from -3 to 4"):
        load_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_becomes_white_and_half_transparent_is_mixed(tmp_path, mode):
    path = tmp_path / "a.png"
    alpha = Image.fromarray(np.array([[0, 255]], np.uint8))
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putalpha(alpha)
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.save(path, transparency=0)
    else:
        image.convert(mode).save(path)
    pixels = np.asarray(load_image(path))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == {"RGBA": [255, 0, 0], "LA": [76, 76, 76], "P": [0, 0, 255]}[mode]


def test_half_transparent_is_mixed_with_white(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[204, 204, 204]]]


def test_another_background(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (1, 1), (255, 255, 255, 51)).save(path)
    assert np.asarray(load_image(path, background=(0, 100, 255))).tolist() == [[[51, 131, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "a.tiff"
    Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(path)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert np.asarray(image).min() == 255


def test_cmyk_goes_through_its_profile(tmp_path):
    path, plain = tmp_path / "a.tiff", tmp_path / "plain.tiff"
    image = Image.new("CMYK", (1, 1), (128, 0, 0, 0))
    image.save(plain)
    image.save(path, icc_profile=grey_ink_profile())
    assert np.asarray(load_image(plain)).tolist() == [[[127, 255, 255]]]
    red, green, blue = np.asarray(load_image(path))[0, 0].tolist()
    assert 155 <= red == green == blue <= 195  # about half way to the profile's grey, its darkest taken for black


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 200, 100, 0)).save(path, quality=95)
    assert np.abs(np.asarray(load_image(path)).astype(int) - (255, 55, 155)).max() <= 3


def test_lab_becomes_rgb(tmp_path):
    path = tmp_path / "a.tiff"
    Image.new("LAB", (1, 1), (255, 128, 128)).save(path)
    assert np.asarray(load_image(path))[0, 0].min() >= 253


def test_png_called_jpg(tmp_path):
    path = tmp_path / "a.jpg"
    corner_picture().save(path, "PNG")
    assert np.array_equal(np.asarray(load_image(path, Size(30, 20))), np.asarray(corner_picture()))


def test_more_pixels_than_pillow_allows(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    corner_picture().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(path).size == (30, 20)


def test_damaged_profile_is_no_fault(tmp_path):
    path = tmp_path / "a.tiff"
    Image.new("CMYK", (1, 1), (0, 0, 0, 0)).save(path, icc_profile=b"not a profile" * 20)
    assert np.asarray(load_image(path)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    assert np.asarray(load_image(path))[0, 0].tolist() == [255, 0, 0]


def test_cut_off_file_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DatasetError, match=r"cut\.jpg is cut off \(its end is missing\); replace or remove it\.$"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "is not an image (it starts with '<!DOCTYPE'), probably a saved web page; replace"),
        (b"", "is empty (0 bytes); replace or remove it."),
        (bytes(range(200)), "is damaged or not an image; replace or remove it."),
    ],
)
def test_what_is_no_picture_is_told_without_words_of_python(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DatasetError) as error:
        load_image(tmp_path / "a.jpg")
    assert str(error.value).startswith(f"{tmp_path / 'a.jpg'} {words}")


def test_a_damaged_beginning_is_told_without_words_of_python(tmp_path):
    path = tmp_path / "a.jpg"
    corner_picture().save(path)
    content = bytearray(path.read_bytes())
    content[content.find(b"\xff\xdb") + 4] ^= 0x10  # of a table: the numbers have 16 bits
    path.write_bytes(content)
    assert read_header(path).size == (30, 20)
    with pytest.raises(
        DatasetError, match=r"a\.jpg cannot be decoded \(the beginning of the file is damaged\)\. Repair"
    ):
        load_image(path)


def test_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.png cannot be read as an image \(No such file or directory\)"):
        load_image(tmp_path / "a.png")


def test_changed_size_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    corner_picture().save(path)
    with pytest.raises(DatasetError, match="is 30x20 pixels but was 20x30"):
        load_image(path, Size(20, 30))


def test_crop_flip_and_range():
    plan = CropPlan(resized=Size(30, 20), left=10, top=5, bucket=Size(16, 8))
    picture = corner_picture()
    pixels = prepare_image(picture, plan, None, False)
    expected = torch.from_numpy(np.asarray(picture)[5:13, 10:26].copy()).permute(2, 0, 1) / 127.5 - 1
    assert (pixels.shape, pixels.dtype) == ((3, 8, 16), torch.float32)
    torch.testing.assert_close(pixels, expected)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(prepare_image(picture, plan, None, True), pixels.flip(-1))


def test_default_filter_follows_the_direction():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8))
    smaller, larger, mixed = Size(31, 22), Size(90, 60), Size(61, 22)
    assert np.array_equal(resize_pixels(noise, smaller, None), resize_pixels(noise, smaller, "area"))
    assert np.array_equal(resize_pixels(noise, larger, None), resize_pixels(noise, larger, "lanczos"))
    assert np.array_equal(resize_pixels(noise, mixed, None), resize_pixels(noise, mixed, "lanczos"))
    assert not np.array_equal(resize_pixels(noise, larger, "area"), resize_pixels(noise, larger, "lanczos"))


def test_every_filter_of_the_dataset_file_works():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8))
    results = {name: resize_pixels(noise, Size(31, 22), name) for name in INTERPOLATIONS}
    assert {result.shape for result in results.values()} == {(22, 31, 3)}
    same = {("bilinear", "linear"), ("bicubic", "cubic")}
    for first in INTERPOLATIONS:
        for second in INTERPOLATIONS:
            is_same = first == second or (first, second) in same or (second, first) in same
            assert np.array_equal(results[first], results[second]) == is_same, (first, second)


def photo(width, height):
    """A picture with large and small shapes."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 127.0)
    for step in (4, 16, 64):
        noise = rng.normal(size=(height // step + 2, width // step + 2, 3))
        pixels += 15 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_decoded_small_is_the_picture_at_the_same_place(tmp_path, orientation):
    """Sides that are no multiple of the reduction, so that a part of the last small pixel lies outside."""
    path, size = tmp_path / "a.jpg", Size(96, 80)
    save_turned(photo(807, 661), path, orientation, quality=95)
    small = load_resized(path, Size(807, 661), size, None).pixels
    whole = load_image(path)
    assert load_image(path, least=size).width < 300
    assert difference(small, resize_pixels(whole, size, None)).mean() < 1
    shifted = resize_pixels(whole.crop((2, 0, 807, 661)), size, None)  # by a quarter of a small pixel
    assert difference(small, shifted).mean() > 1.5


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_jpeg_is_decoded_small_only_where_all_of_its_pixels_count(tmp_path, interpolation):
    path, size = tmp_path / "a.jpg", Size(96, 80)
    photo(807, 661).save(path, quality=95)
    loaded = load_resized(path, Size(807, 661), size, interpolation).pixels
    difference_to_whole = difference(loaded, resize_pixels(load_image(path), size, interpolation))
    if interpolation in ("area", "lanczos"):
        assert 0 < difference_to_whole.mean() < 1
    else:
        assert not difference_to_whole.any()


@pytest.mark.parametrize(
    ("least", "decoded"),
    [((200, 100), (400, 200)), ((201, 10), (800, 400)), ((100, 20), (200, 100)), ((1, 1), (100, 50))],
)
def test_at_least_twice_the_size_is_decoded(tmp_path, least, decoded):
    path = tmp_path / "a.jpg"
    photo(800, 400).save(path)
    assert load_image(path, least=Size(*least)).size == decoded


def test_size_is_checked_before_a_jpeg_is_decoded_small(tmp_path):
    path = tmp_path / "a.jpg"
    photo(800, 400).save(path)
    assert load_image(path, Size(800, 400), least=Size(10, 10)).size == (100, 50)
    with pytest.raises(DatasetError, match="is 800x400 pixels but was 100x50"):
        load_image(path, Size(100, 50), least=Size(10, 10))


class TestMasks:
    def test_red_counts_and_transparent_is_black(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(np.array([[(200, 9, 9, 255), (200, 9, 9, 0)]], np.uint8)).save(path)
        assert load_mask(path, Size(2, 1), Size(2, 1), None).tolist() == [[200, 0]]

    def test_16_bits_and_two_levels(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(np.array([[0, 20000, 65535]], np.uint16)).save(path)
        assert load_mask(path, Size(3, 1), Size(3, 1), None).tolist() == [[0, 78, 255]]
        Image.fromarray(np.array([[False, True]])).save(path)
        assert load_mask(path, Size(2, 1), Size(2, 1), None).tolist() == [[0, 255]]

    def test_orientation_is_its_own(self, tmp_path):
        path = tmp_path / "a.png"
        save_turned(corner_picture(), path, 6)
        red = np.asarray(corner_picture())[..., 0]
        assert np.array_equal(load_mask(path, Size(30, 20), Size(30, 20), None), red)

    @pytest.mark.parametrize("factor", [0.5, 3])
    @pytest.mark.parametrize("interpolation", [None, "nearest", "lanczos"])
    def test_smaller_and_larger_masks_lie_over_the_whole_picture(self, tmp_path, factor, interpolation):
        path = tmp_path / "a.png"
        ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1))
        mask = cv2.resize(ramp, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        Image.fromarray(mask).save(path)
        found = load_mask(path, Size(64, 32), Size(64, 32), interpolation)
        assert found.shape == (32, 64)
        assert difference(found, ramp).max() <= 5

    def test_values_of_0_and_1_are_an_error(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)
        with pytest.raises(DatasetError, match=r"a\.png is nearly black, with values of 0 and 1 .* 0 and 255"):
            load_mask(path, Size(2, 1), Size(2, 1), None)
        Image.fromarray(np.array([[0, 0]], np.uint8)).save(path)
        assert load_mask(path, Size(2, 1), Size(2, 1), None).tolist() == [[0, 0]]

    def test_another_shape_is_an_error(self, tmp_path):
        path = tmp_path / "a.png"
        Image.new("L", (30, 20)).save(path)
        with pytest.raises(DatasetError, match=r"a\.png is 30x20 pixels but its picture 20x30. Give both one shape"):
            load_mask(path, Size(20, 30), Size(20, 30), None)


class TestDrives:
    """Reading from drives that fail for a moment; the fault is put into the file that Python opens."""

    @pytest.fixture
    def picture(self, tmp_path, monkeypatch):
        path = tmp_path / "a.bmp"
        corner_picture().save(path)
        self.attempts, real_open = [], type(path).open

        def failing_open(opened, *arguments, **options):
            self.attempts.append(opened)
            if len(self.attempts) <= self.num_faults:
                raise OSError(self.code, "the drive hiccuped")
            return real_open(opened, *arguments, **options)

        monkeypatch.setattr(type(path), "open", failing_open)
        monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0))
        self.code = errno.EIO
        return path

    @pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
    def test_three_hiccups_are_survived(self, picture, code, caplog):
        self.num_faults, self.code = 3, code
        assert load_image(picture).size == (30, 20)
        assert len(self.attempts) == 4
        assert caplog.text.count(f"{picture} cannot be read (the drive hiccuped); trying again") == 3

    def test_a_fourth_is_an_error_that_names_the_file(self, picture):
        self.num_faults = 4
        with pytest.raises(UnreadableError, match=r"a\.bmp cannot be decoded .*the drive hiccuped.*Several attempts"):
            load_image(picture)
        assert len(self.attempts) == 4

    def test_what_does_not_pass_is_not_tried_again(self, picture):
        self.num_faults, self.code = 1, errno.EACCES
        with pytest.raises(UnreadableError, match="Make it readable"):
            load_image(picture)
        assert len(self.attempts) == 1


def grey_ink_profile() -> bytes:
    """A CMYK profile by which paper is white and every full ink the same grey, L* 50 (ICC.1:2001, table type lut8)."""
    table = bytes(part for node in range(16) for part in ((255 if node == 0 else 128), 128, 128))  # 2 nodes a channel
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    lut += bytes(-len(lut) % 4)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    offset = 128 + 4 + 2 * 12
    tags = struct.pack(">I", 2) + b"A2B0" + struct.pack(">II", offset, len(lut))
    tags += b"wtpt" + struct.pack(">II", offset + len(lut), len(white))
    body = tags + lut + white
    size = struct.pack(">I", 128 + len(body))
    header = size + bytes(4) + struct.pack(">I", 0x02100000) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body
