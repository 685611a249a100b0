"""tools/resize_images_to_resolution.py: sizes, names, what goes along, and what is refused."""

import io
import subprocess
import sys
import time
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from bad_corpus import INK_GREY, cyan_ink, deep_rgb, encoded, hidden_red, ink_profile, moving, noise, quarters, turned
from bad_corpus import write as write_bad
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from library.data.pixels.images import load_image
from library.preparing.resizing.sizes import central_cut, fitted_size
from library.records import Size
from tools.resize_images_to_resolution import main

CAMERA, EXPOSURE, WIDTH, HEIGHT, MAKER_NOTE, MAKE, ORIENTATION = 0x8769, 0x829A, 0xA002, 0xA003, 0x927C, 0x010F, 0x0112
SIDES = st.integers(1, 5000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def resize(folder, tmp_path):
    """Runs the tool; gives the exit code, and the results by name."""

    def run(*flags, resolutions="32x32"):
        code = main([str(folder), str(tmp_path / "out"), f"--max_resolution={resolutions}", *flags])
        results = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
        return code, results

    return run


def size_of(path):
    with Image.open(path) as image:
        return image.size


def profile_of(path):
    with Image.open(path) as image:
        return image.info.get("icc_profile")


# Sizes


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_area_is_never_larger_and_no_pixel_row_more_would_fit(width, height, limit_width, limit_height):
    area = limit_width * limit_height
    fitted = fitted_size(Size(width, height), Size(limit_width, limit_height), may_grow=True)
    assert 1 <= fitted.width * fitted.height <= area
    scale = (area / (width * height)) ** 0.5
    if min(width, height) * scale >= 1:
        assert abs(fitted.width - width * scale) <= 1 and abs(fitted.height - height * scale) <= 1


@given(SIDES, SIDES)
def test_small_pictures_keep_their_size(width, height):
    assert fitted_size(Size(width, height), Size(width, height)) == (width, height)
    assert fitted_size(Size(width, height), Size(height + 1, width)) == (width, height)


def test_width_stays_width():
    assert fitted_size(Size(1200, 600), Size(512, 512)) == (724, 362)
    assert fitted_size(Size(600, 1200), Size(512, 512)) == (362, 724)
    assert fitted_size(Size(1024, 1024), Size(512, 512)) == (512, 512)
    assert fitted_size(Size(100000, 1), Size(128, 128)) == (16384, 1)


def test_edges_are_cut_evenly():
    cut = central_cut(Size(724, 362), 64)
    assert (cut.bucket, cut.left, cut.top) == ((704, 320), 10, 21)
    assert central_cut(Size(724, 362), 1).bucket == (724, 362)


# Results


def test_each_resolution_starts_from_the_original(folder, resize):
    (folder / "a.b.JPG").write_bytes(encoded(noise(90, 60), "JPEG"))
    code, results = resize(resolutions="32x32, 16X16,60x90")
    assert code == 0
    assert {name: size_of(path) for name, path in results.items()} == {
        "a.b+32x32.jpg": (39, 26),
        "a.b+16x16.jpg": (19, 13),
        "a.b+60x90.jpg": (90, 60),
    }
    among_others = results["a.b+16x16.jpg"].read_bytes()
    assert resize("--overwrite", resolutions="16x16")[0] == 0
    assert results["a.b+16x16.jpg"].read_bytes() == among_others


def test_a_picture_that_needs_no_change_keeps_its_bytes(folder, resize):
    (folder / "a.jpg").write_bytes(encoded(noise(20, 20), "JPEG"))
    (folder / "b.png").write_bytes(hidden_red())
    code, results = resize(resolutions="200x200")
    assert (code, set(results)) == (0, {"a+200x200.jpg", "b+200x200.png"})
    assert results["a+200x200.jpg"].read_bytes() == (folder / "a.jpg").read_bytes()
    assert results["b+200x200.png"].read_bytes() == (folder / "b.png").read_bytes()


def test_small_pictures_grow_only_when_asked(folder, resize):
    (folder / "a.png").write_bytes(encoded(noise(20, 10)))
    assert [size_of(path) for path in resize()[1].values()] == [(20, 10)]
    assert [size_of(path) for path in resize("--upscale", "--overwrite")[1].values()] == [(45, 22)]


@pytest.mark.parametrize("flags", [[], *([f"--interpolation={name}"] for name in ("box", "lanczos4", "cubic"))])
def test_pixels_are_those_of_a_training(folder, resize, flags):
    (folder / "a.png").write_bytes(encoded(quarters(64, 64)))
    _, results = resize(*flags, "--save_as_png")
    pixels = np.asarray(Image.open(results["a+32x32.png"]))
    assert (pixels[8, 8] == (220, 40, 40)).all() and (pixels[24, 8] == (40, 60, 210)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_stored_upright(folder, resize, orientation):
    (folder / "a.jpg").write_bytes(turned(orientation))  # a picture of 96 x 64
    _, results = resize()
    with Image.open(results["a+32x32.jpg"]) as image:
        assert image.size == (39, 26) and image.getexif().get(ORIENTATION) is None
        assert np.abs(np.asarray(image)[4, 4].astype(int) - (220, 40, 40)).max() < 8


def test_the_rest_of_the_exif_goes_along(folder, resize):
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Box", 6
    exif[CAMERA] = {EXPOSURE: 0.5, WIDTH: 96, HEIGHT: 64, MAKER_NOTE: b"at 1234"}
    encoded_picture = io.BytesIO()
    noise(96, 64).save(encoded_picture, "JPEG", exif=exif)
    (folder / "a.jpg").write_bytes(encoded_picture.getvalue())
    for flag, name in (("--overwrite", "a+32x32.jpg"), ("--save_as_png", "a+16x16.png")):
        _, results = resize(flag, resolutions=name[2:7])
        with Image.open(results[name]) as image:
            image.load()
            found = image.getexif()
            assert dict(found.get_ifd(CAMERA)) == {EXPOSURE: 0.5, WIDTH: image.width, HEIGHT: image.height}
            assert image.height > image.width and found[MAKE] == "Box" and ORIENTATION not in found


def test_exif_that_fits_no_jpeg_is_told(folder, resize, capsys):
    exif = Image.Exif()
    exif[MAKE] = "x" * 70000
    noise(64, 64).save(folder / "a.png", exif=exif)
    assert resize()[0] == 0
    assert "the EXIF of 1 picture is damaged or too long for a JPEG and was left out: a.png" in capsys.readouterr().err


def test_profiles_go_along_where_they_are_true(folder, resize):
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = wide[:16] + b"GRAY" + wide[20:]
    noise(64, 64).save(folder / "rgb.png", icc_profile=wide)
    noise(64, 64).convert("L").save(folder / "grey.png", icc_profile=grey)
    noise(64, 64).save(folder / "wrong.png", icc_profile=grey)
    (folder / "ink.jpg").write_bytes(cyan_ink(icc_profile=ink_profile()))
    _, results = resize()
    assert profile_of(results["rgb+32x32.jpg"]) == wide
    assert profile_of(results["grey+32x32.jpg"]) == grey and Image.open(results["grey+32x32.jpg"]).mode == "L"
    assert profile_of(results["wrong+32x32.jpg"]) is None
    assert profile_of(results["ink+32x32.jpg"]) is None
    assert np.abs(np.asarray(Image.open(results["ink+32x32.jpg"])).astype(int) - INK_GREY).max() <= 2


def test_16_bits_become_8(folder, resize):
    (folder / "deep.png").write_bytes(deep_rgb())
    Image.fromarray(np.full((64, 64), 20000, np.uint16)).save(folder / "grey.png")
    _, results = resize("--save_as_png", resolutions="1x1")
    assert {np.asarray(Image.open(path)).max() for path in results.values()} == {78}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_stays_and_looks_the_same_on_white(folder, resize, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, len(mode)), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    _, results = resize()
    with Image.open(results["a+32x32.png"]) as image:
        assert (image.mode, image.size) == (mode, (32, 32))
    whole, small = (np.asarray(load_image(path)).astype(float) for path in (folder / "a.png", results["a+32x32.png"]))
    assert np.abs(whole.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).max() <= 2


def test_of_an_animation_the_first_frame(folder, resize):
    (folder / "a.gif").write_bytes(moving("GIF"))
    (folder / "b.png").write_bytes(moving("PNG"))
    _, results = resize("--save_as_png", resolutions="64x64")
    assert all(getattr(Image.open(path), "n_frames", 1) == 1 for path in results.values()) and len(results) == 2


def test_folders_keep_their_shape(folder, resize):
    (folder / "in").mkdir()
    for name in ("a.jpg", "in/a.png"):
        (folder / name).write_bytes(encoded(noise(), name[-3:].replace("jpg", "jpeg")))
    assert set(resize("--recursive")[1]) == {"a+32x32.jpg", "in/a+32x32.jpg"}


# Captions


def test_captions_go_along_and_caches_do_not(folder, resize):
    for name in ("a.png", "a.v2.png"):
        (folder / name).write_bytes(encoded(noise()))
    for name in ("a.txt", "a.tags.txt", "a.v2.caption", "a.npz", "a.safetensors", "a.psd", "other.txt"):
        (folder / name).write_text(name)
    _, results = resize("--copy_associated_files", resolutions="32x32,16x16")
    texts = {name: path.read_text() for name, path in results.items() if path.suffix != ".jpg"}
    assert texts == {
        f"{stem}+{size}{ending}": f"{stem}{ending}"
        for size in ("32x32", "16x16")
        for stem, ending in (("a", ".txt"), ("a", ".tags.txt"), ("a.v2", ".caption"))
    }


def test_what_is_there_stays_unless_told(folder, resize, capsys):
    (folder / "a.png").write_bytes(encoded(noise()))
    (folder / "a.txt").write_text("new")
    _, results = resize("--copy_associated_files")
    for path in results.values():
        path.write_text("by hand")
    assert resize("--copy_associated_files")[0] == 0
    told = capsys.readouterr().err
    assert "wrote 0, kept 1 that were there" in told and "copied 0, kept 1 that were there" in told
    assert {path.read_text() for path in results.values()} == {"by hand"}
    resize("--copy_associated_files", "--overwrite")
    assert results["a+32x32.txt"].read_text() == "new" and size_of(results["a+32x32.jpg"]) == (32, 32)


@pytest.mark.parametrize(("picture", "caption"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_a_sign_of_its_own(folder, resize, picture, caption):
    (folder / f"{normalize(picture, 'grün')}.png").write_bytes(encoded(noise()))
    (folder / f"{normalize(caption, 'grün')}.v2.txt").write_text("a green car")
    _, results = resize("--copy_associated_files")
    assert results[normalize(picture, "grün+32x32") + ".v2.txt"].read_text() == "a green car"


def test_captions_of_no_picture_are_told(folder, resize, capsys):
    (folder / f"{normalize('NFC', 'grün')}.png").write_bytes(encoded(noise()))
    for name in ("other.caption", *(f"{normalize(form, 'grün')}.txt" for form in ("NFC", "NFD"))):
        (folder / name).write_text(name)
    _, results = resize("--copy_associated_files")
    told = capsys.readouterr().err
    assert f"2 text files of no picture not copied: other.caption, {normalize('NFD', 'grün')}.txt." in told
    assert results[normalize("NFC", "grün+32x32") + ".txt"].read_text() == normalize("NFC", "grün.txt")


def test_results_of_another_size_are_kept_and_told(folder, resize, capsys):
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(encoded(noise(64, 64 if name == "a" else 40)))
    resize()
    resize("--save_as_png", resolutions="16x16")
    capsys.readouterr()
    assert resize("--divisible_by=8")[0] == 0
    told = capsys.readouterr().err
    assert "wrote 0, kept 2" in told and "kept 1 result of another size than these" in told and "b+32x32.jpg" in told
    resize("--divisible_by=8", "--overwrite")
    capsys.readouterr()
    resize("--divisible_by=8")
    assert "another size" not in capsys.readouterr().err


def test_what_became_png_is_told_when_it_is_written(folder, resize, capsys):
    (folder / "a.png").write_bytes(hidden_red())
    told = "1 picture can be transparent and became PNG"
    resize()
    assert told in capsys.readouterr().err
    resize()
    assert told not in capsys.readouterr().err


def test_what_is_killed_leaves_whole_results_and_goes_on(folder, resize, tmp_path):
    for number in range(40):
        (folder / f"{number}.png").write_bytes(encoded(noise(300, 300)))
    script = Path(__file__).parents[3] / "tools" / "resize_images_to_resolution.py"
    command = [sys.executable, script, folder, tmp_path / "out", "--max_resolution=280x280", "--save_as_png"]
    with subprocess.Popen([*command, "--max_data_loader_n_workers=0"], stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("out/*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    done = {path.name: path.read_bytes() for path in tmp_path.glob("out/*.png")}
    assert 1 <= len(done) < 40
    code, results = resize("--save_as_png", resolutions="280x280")
    assert (code, len(results)) == (0, 40)
    assert {size_of(path) for path in results.values()} == {(280, 280)}
    assert all(results[name].read_bytes() == content for name, content in done.items())


def test_originals_are_not_written_through_links(folder, resize, tmp_path):
    (folder / "a.png").write_bytes(encoded(noise()))
    (folder / "a.txt").write_text("caption")
    (folder / "b.txt").write_text("of another")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a+32x32.txt").symlink_to(folder / "b.txt")
    resize("--copy_associated_files", "--overwrite")
    assert (folder / "b.txt").read_text() == "of another"
    assert (tmp_path / "out" / "a+32x32.txt").read_text() == "caption"


# What cannot be done


def test_broken_pictures_are_listed_and_the_rest_is_done(folder, resize, capsys):
    write_bad(folder, "trunc.jpg", "zero.png")
    (folder / "good.png").write_bytes(encoded(noise()))
    code, results = resize()
    told = capsys.readouterr().err
    assert (code, set(results)) == (2, {"good+32x32.jpg"})
    assert "2 pictures were passed over" in told and "trunc.jpg is cut off" in told and "zero.png is empty" in told


def test_a_folder_that_takes_no_files_is_one_sentence(folder, capsys):
    (folder / "a.png").write_bytes(encoded(noise()))
    assert main([str(folder), "/dev/null/new"]) == 5
    assert "/dev/null: no file can be written there (Not a directory)" in capsys.readouterr().err


def test_pictures_of_one_name_do_not_overwrite_each_other(folder, resize, capsys):
    for name in ("a.png", "a.jpg", "b.png"):
        (folder / name).write_bytes(encoded(noise(), name[-3:].replace("jpg", "jpeg")))
    code, results = resize()
    assert (code, set(results)) == (2, {"b+32x32.jpg"})
    assert "a.jpg and a.png would be written to the same files; rename one of them" in capsys.readouterr().err


def test_a_result_of_the_other_type_is_in_the_way(folder, resize, capsys):
    (folder / "a.png").write_bytes(encoded(noise()))
    assert resize()[0] == 0
    code, results = resize("--save_as_png")
    assert (code, set(results)) == (2, {"a+32x32.jpg"})
    assert "from another run, and two pictures of one name share a caption" in capsys.readouterr().err


def test_a_side_shorter_than_the_divisor_is_a_fault(folder, resize, capsys):
    (folder / "a.png").write_bytes(encoded(noise(64, 8)))
    (folder / "b.png").write_bytes(encoded(noise(64, 64)))
    code, results = resize("--divisible_by=16")
    assert (code, set(results)) == (2, {"b+32x32.jpg"})
    assert "a.png becomes 64x8, which leaves nothing that --divisible_by 16 can divide" in capsys.readouterr().err


def test_a_name_that_would_become_too_long_is_a_fault(folder, resize, capsys):
    (folder / f"{'x' * 247}.png").write_bytes(encoded(noise()))
    (folder / "b.png").write_bytes(encoded(noise()))
    code, results = resize()
    assert (code, set(results)) == (2, {"b+32x32.jpg"})
    assert "has too long a name" in capsys.readouterr().err


def test_results_may_lie_below_the_pictures_if_nothing_there_is_read(folder):
    (folder / "a.png").write_bytes(encoded(noise()))
    assert [main([str(folder), str(folder / "small"), "--max_resolution=32x32"]) for _ in range(2)] == [0, 0]
    assert [path.name for path in (folder / "small").iterdir()] == ["a+32x32.jpg"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["photos", "photos"], "is SRC_IMG_FOLDER: the next run would resize what this one writes"),
        (["photos", "photos/small", "--recursive"], "cannot lie in each other"),
        (["photos", "photos/a.png"], "is a file. Name a folder"),
        (["nothing", "out"], "SRC_IMG_FOLDER nothing does not exist"),
        (["photos"], "DST_IMG_FOLDER is needed"),
        (["photos", "out", "--max_resolution=512"], "got '512'. For one size write 512x512."),
        (["photos", "out", "--max_resolution=768, 512"], "got '768, 512'. For one size write 768x512."),
        (["photos", "out", "--max_resolution=8x8,8"], "needs sizes as WIDTHxHEIGHT, separated by commas, got '8x8,8'."),
        (["photos", "out", "--max_resolution=8x8,8x7", "--divisible_by=8"], "--divisible_by 8 fits no picture at 8x7"),
        (["photos", "out", "--max_resolution=8x8,8x8"], "has a resolution twice"),
        (["photos", "out", "--divisible_by=0"], "--divisible_by must be at least 1"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (folder / "a.png").write_bytes(encoded(noise()))
    before = {path.name for path in tmp_path.rglob("*")}
    assert main(flags) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert {path.name for path in tmp_path.rglob("*")} == before
