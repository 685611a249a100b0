"""Scanning folders: pictures, sizes, names, and everything that can be wrong with them."""

import builtins
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files import patience
from library.data.files.headers import PictureHeader
from library.data.files.index import PictureIndex, file_state
from library.data.files.listing import natural_order
from library.data.files.scan import scan_datasets
from library.records import Size


def save_image(path, size=(12, 8), orientation=None, mode="RGB", **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        arguments["exif"] = exif
    Image.new(mode, size).save(path, **arguments)
    return path


def scan(*folders, source="data.toml", index=None, **options):
    options.setdefault("class_tokens", "x")
    subsets = tuple(SubsetSpec(image_dir=folder, **options) for folder in folders)
    return scan_datasets([DatasetSpec(resolution=Size(64, 64), subsets=subsets)], source, index=index)


def records_of(*folders, **options):
    """The records, where nothing may be wrong."""
    found = scan(*folders, **options)
    assert not found.findings.problems and not found.findings.faults
    return found.records


def names(scanned):
    return [record.path.name for record in scanned.records]


def test_pictures_of_all_types_in_natural_order(tmp_path):
    given = ["img10.PNG", "img2.Jpg", "img1.webp", "b.bmp", "c.gif", "D.tif", "e.JPEG", "f.jfif", "g.TiFF", "h.tga"]
    for name in given:
        save_image(tmp_path / "folder" / name, format="JPEG" if name.endswith("jfif") else None)
    for name in (".hidden.png", "._a.jpg", "notes.md", "Thumbs.db", "desktop.ini"):
        (tmp_path / "folder" / name).write_bytes(b"x")
    save_image(tmp_path / "folder" / "sub.png" / "inner.png")
    records = records_of(tmp_path / "folder", class_tokens="sks dog", num_repeats=3)
    expected = ["b.bmp", "c.gif", "D.tif", "e.JPEG", "f.jfif", "g.TiFF", "h.tga", "img1.webp", "img2.Jpg", "img10.PNG"]
    assert [r.path.name for r in records] == expected
    assert [r.key for r in records] == [f"folder/{r.path.name}" for r in records]
    assert {(r.caption, r.size, r.repeats, r.dataset, r.subset) for r in records} == {("sks dog", Size(12, 8), 3, 0, 0)}


def test_natural_order():
    assert sorted(["a10", "a9", "A1", "b", "1"], key=natural_order) == ["1", "A1", "a9", "a10", "b"]
    assert sorted(["²", "a2", "2"], key=natural_order)[0] == "2"  # signs that look like digits are no numbers


@pytest.mark.parametrize("folder", ["with space", "br[1]", "日本 語 é"])
def test_any_folder_name(tmp_path, folder):
    save_image(tmp_path / folder / "a[2] ü.png")
    (tmp_path / folder / "a[2] ü.txt").write_text("caption é", encoding="utf-8")
    (record,) = records_of(tmp_path / folder, caption_extension=".txt")
    assert (record.key, record.caption) == (f"{folder}/a[2] ü.png", "caption é")


def test_broken_images_are_all_faults_and_the_rest_is_found(tmp_path):
    folder = tmp_path / "folder"
    for suffix in ("jpg", "png", "webp"):
        path = save_image(folder / f"cut.{suffix}", (64, 64))
        path.write_bytes(path.read_bytes()[:-20])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"\n<html><body>404")
    (folder / "noise.jpg").write_bytes(b"0123456789")
    (folder / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    save_image(folder / "good.jpg")
    found = scan(folder)
    assert names(found) == ["good.jpg"]
    reasons = {fault.path.name: fault.problem for fault in found.findings.faults}
    expected = {
        "cut.jpg": "is cut off",
        "cut.png": "is cut off",
        "cut.webp": "is cut off",
        "empty.png": "is empty (0 bytes)",
        "noise.jpg": "is damaged or not an image",
        "page.jpg": "is not an image (it starts with '<html><bo')",
        "pointer.png": "is not an image but a Git LFS pointer",
        "link.png": "cannot be read as an image (No such file or directory)",
        "pipe.png": "is not a file",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reasons[name].startswith(reason) and not reasons[name].endswith(".")
    assert not found.findings.problems


def test_picture_with_too_many_pixels_is_a_fault(tmp_path):
    save_image(tmp_path / "a.png", (40, 30))
    save_image(tmp_path / "b.png", (40, 31))
    found = scan(tmp_path, max_image_pixels=1200)
    assert names(found) == ["a.png"]
    (fault,) = found.findings.faults
    assert str(fault) == (
        f"{tmp_path / 'b.png'} has 1,240 pixels (40x31), more than max_image_pixels 1,200; "
        "make it smaller, or raise the limit"
    )


def test_captions_come_from_their_files(tmp_path):
    for name in ("a", "b.v1"):
        save_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"text of {name}\nsecond", encoding="utf-8")
    save_image(tmp_path / "sub" / "c.png")
    (tmp_path / "sub" / "c.txt").write_text("text of c", encoding="utf-8")
    found = scan(tmp_path, caption_extension=".txt", recursive=True)
    assert [record.caption for record in found.records] == ["text of a", "text of b.v1", "text of c"]
    assert any("several lines" in note for note in found.findings.notes)


def test_picture_without_usable_caption_is_not_used(tmp_path):
    for name in "abc":
        save_image(tmp_path / f"{name}.png")
    (tmp_path / "a.caption").write_text("text", encoding="utf-8")
    (tmp_path / "b.caption").write_bytes(b"")
    found = scan(tmp_path, class_tokens=None)
    assert names(found) == ["a.png"]
    assert {fault.picture.name for fault in found.findings.faults} == {"b.png", "c.png"}


def test_folders_without_pictures(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x", encoding="utf-8")
    save_image(tmp_path / "parent" / "child" / "a.png")
    file = save_image(tmp_path / "file.png")
    monkeypatch.chdir(tmp_path / "empty")
    found = scan(
        tmp_path / "empty",
        tmp_path / "texts",
        tmp_path / "parent",
        tmp_path / "none" / "deep",
        file,
        Path("texts"),
        source=str(tmp_path / "data.toml"),
    )
    assert found.records == ()
    message = "\n".join(found.findings.problems)
    assert len(found.findings.problems) == 6
    assert f"{tmp_path / 'empty'} has no images, it is empty" in message
    assert f"{tmp_path / 'texts'} has no images; its files are 1 .txt" in message
    assert f"{tmp_path / 'parent'} has no images, only folders (child): name each in a subset" in message
    assert "or set recursive = true" in message
    assert f"{tmp_path / 'none' / 'deep'} does not exist; the nearest folder that does is {tmp_path}" in message
    assert f"{file} is a file; name the folder it is in" in message
    assert f"image_dir texts does not exist in the current folder {tmp_path / 'empty'}" in message
    assert f"it is at {tmp_path / 'texts'}" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_closed_sub_folder_is_a_problem(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "closed").mkdir(mode=0)
    (problem,) = scan(tmp_path, recursive=True).findings.problems
    assert "sub-folder" in problem and "Permission denied" in problem


def test_recursive_folders(tmp_path):
    root = tmp_path / "data"
    for place in ("b.png", "z/a.png", "z/deep/a.png", "text_encoder_cache/x.png", ".hidden/x.png", "masks/b.png"):
        save_image(root / place)
    (root / "again").symlink_to(root / "z")
    (root / "z" / "loop").symlink_to(root)
    records = records_of(root, recursive=True)
    assert [r.key for r in records] == ["data/again/a.png", "data/again/deep/a.png", "data/b.png", "data/masks/b.png"]
    assert [r.key for r in records_of(root)] == ["data/b.png"]
    with_masks = scan(root, recursive=True, conditioning_data_dir=root / "masks")
    assert not any("masks" in record.key for record in with_masks.records)


def test_folders_that_are_not_read_are_named(tmp_path):
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "more" / "b.png")
    remark = f"{tmp_path}: sub-folders are not read (set recursive = true to read them): more"
    assert remark in scan(tmp_path).findings.remarks
    assert not any("not read" in line for line in scan(tmp_path, recursive=True).findings.remarks)


def test_files_of_other_picture_types_are_left_out(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    (tmp_path / "c.psd").write_bytes(b"x")
    found = scan(tmp_path)
    assert names(found) == ["a.png"]
    assert [fault.path.name for fault in found.findings.left_out] == ["b.HEIC", "c.psd"]
    assert found.findings.left_out[0].problem == (
        "is not used: files of type .heic cannot be read; convert it to PNG or JPEG"
    )


def test_videos_are_left_out_and_not_called_pictures(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "b.MP4").write_bytes(b"x")
    (fault,) = scan(tmp_path).findings.left_out
    assert str(fault) == f"{tmp_path / 'b.MP4'} is not used: .mp4 is a video; take single pictures out of it"


def test_a_folder_of_pictures_of_other_types_only_says_that_they_are_to_be_converted(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-8")
    (problem,) = scan(tmp_path).findings.problems
    assert problem.endswith(". Files of type .heic cannot be read: convert them to PNG or JPEG")
    assert "Name a folder" not in problem


def test_types_that_this_pillow_lacks_are_left_out_with_the_package(tmp_path):
    jxl = tmp_path / "a.JXL"
    jxl.write_bytes(b"\xff\x0a" + b"\0" * 40)
    found = scan(tmp_path)
    (problem,) = found.findings.problems
    assert "has no images; its files are 1 .jxl, which cannot be read: the installed Pillow does not know" in problem
    save_image(tmp_path / "b.png")
    (fault,) = scan(tmp_path).findings.left_out
    assert fault.path == jxl and "install the package pillow-jxl-plugin" in fault.problem


def test_index_of_another_program_is_not_used(tmp_path):
    save_image(tmp_path / "a.png")
    stale = {str(tmp_path / "a.png"): {"caption": "old", "resolution": [1, 1]}}
    (tmp_path / "metadata_cache.json").write_text(json.dumps(stale), encoding="utf-8")
    found = scan(tmp_path)
    assert [(r.caption, r.size) for r in found.records] == [("x", Size(12, 8))]
    assert any("metadata_cache.json of another program is not used" in line for line in found.findings.remarks)


def test_how_pictures_are_stored_is_remarked_on(tmp_path):
    save_image(tmp_path / "turned.jpg", orientation=6)
    save_image(tmp_path / "plain.jpg")
    save_image(tmp_path / "print.jpg", mode="CMYK")
    save_image(tmp_path / "deep.png", mode="I;16")
    save_image(tmp_path / "clear.png", mode="RGBA")
    frames = [Image.new("RGB", (12, 8), (number, 0, 0)) for number in (0, 90, 180)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    found = scan(tmp_path)
    assert len(found.records) == 6
    assert set(found.findings.remarks) == {
        "pictures turned or mirrored as their EXIF orientation says: 1 (turned.jpg)",
        "pictures of print or LAB colours, turned into RGB by their profile: 1 (print.jpg)",
        "grey pictures of 16 or 32 bits, scaled to 8: 1 (deep.png)",
        "pictures with transparency, laid on white: 1 (clear.png)",
    }
    assert found.findings.notes == (
        "animated pictures or pictures of several pages: 1 (moving.webp: first frame of 3 used)",
    )
    black = scan(tmp_path, background=(0, 0, 0)).findings.remarks
    assert "pictures with transparency, laid on the background (0, 0, 0): 1 (clear.png)" in black
    masked = scan(tmp_path, alpha_mask=True).findings
    assert not any("transparency" in line for line in masked.remarks)
    assert any("alpha_mask, learned everywhere: 5" in line for line in masked.notes)


def test_keys_are_unique_and_do_not_depend_on_where_the_data_is(tmp_path):
    keys = []
    for root in ("one", "two"):
        for folder in ("a/img", "b/img", "c", "0.1"):
            save_image(tmp_path / root / folder / "x.png")
        folders = [tmp_path / root / folder for folder in ("a/img", "b/img", "c", "0.1")]
        first = DatasetSpec(
            resolution=Size(64, 64), subsets=tuple(SubsetSpec(image_dir=f, class_tokens="t") for f in folders)
        )
        second = DatasetSpec(resolution=Size(32, 32), subsets=first.subsets[:1])
        keys.append([r.key for r in scan_datasets([first, second], "data.toml").records])
    assert keys[0] == keys[1] == ["img/x.png", "0.1/img/x.png", "c/x.png", "0.3/0.1/x.png", "1.0/img/x.png"]


def test_a_folder_in_two_datasets_is_reported_once(tmp_path):
    save_image(tmp_path / "a.png", orientation=3)
    (tmp_path / "b.png").write_bytes(b"")
    spec = DatasetSpec(resolution=Size(64, 64), subsets=(SubsetSpec(image_dir=tmp_path, class_tokens="t"),))
    found = scan_datasets([spec, spec], "data.toml")
    assert names(found) == ["a.png", "a.png"]
    assert len(found.findings.faults) == 1
    assert found.findings.remarks == ("pictures turned or mirrored as their EXIF orientation says: 1 (a.png)",)


def test_files_that_two_subsets_of_a_dataset_reach_are_a_problem(tmp_path):
    for place in ("all/a.png", "all/part/b.png", "all/part/c.png", "other/d.png"):
        save_image(tmp_path / place)
    (tmp_path / "other" / "e.png").symlink_to(tmp_path / "all" / "a.png")
    folders = [tmp_path / name for name in ("all", "all/part", "other")]
    first, second = scan(*folders, recursive=True).findings.problems
    assert first == (
        f"dataset 1: subsets 1 ({folders[0]}) and 2 ({folders[1]}) have 2 files in common (b.png, c.png); "
        "remove them from one of the two"
    )
    assert "subsets 1" in second and "and 3" in second and "1 files in common (a.png)" in second
    assert scan(*folders[1:]).findings.problems == ()


def test_current_folder_has_its_name(tmp_path, monkeypatch):
    save_image(tmp_path / "mine" / "x.png")
    monkeypatch.chdir(tmp_path / "mine")
    assert scan(Path(".")).records[0].key == "mine/x.png"


def metadata_subset(tmp_path, content, **options):
    file = tmp_path / "meta.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return SubsetSpec(metadata_file=file, **options)


def scan_subset(subset, index=None):
    return scan_datasets([DatasetSpec(resolution=Size(64, 64), subsets=(subset,))], "data.toml", index=index)


def test_metadata_names_pictures_and_captions(tmp_path):
    save_image(tmp_path / "img" / "a.png")
    save_image(tmp_path / "img" / "sub" / "b.png")
    save_image(tmp_path / "img" / "unnamed.png")
    content = {"a.png": {"caption": "one", "image_size": [5, 5]}, "sub/b.png": {"tags": "two", "image_size": [12, 8]}}
    found = scan_subset(metadata_subset(tmp_path, content, image_dir=tmp_path / "img"))
    assert [(r.key, r.caption, r.size) for r in found.records] == [
        ("img/a.png", "one", Size(12, 8)),
        ("img/sub/b.png", "two", Size(12, 8)),
    ]
    assert any("image_size is not the picture's, whose own is used: 1 (a.png)" in r for r in found.findings.remarks)


def test_metadata_with_absolute_names_needs_no_folder(tmp_path):
    paths = [save_image(tmp_path / place) for place in ("set/a/x.png", "set/b/x.png")]
    content = {str(path): {"caption": "text"} for path in paths}
    found = scan_subset(metadata_subset(tmp_path, content, image_dir=None))
    assert [record.key for record in found.records] == ["set/a/x.png", "set/b/x.png"]


def test_masks_are_paired_and_their_shape_is_checked(tmp_path):
    for name in ("a.png", "half.png", "other.png", "broken.png"):
        save_image(tmp_path / "img" / name, (64, 48))
    save_image(tmp_path / "mask" / "a.png", (64, 48), mode="L")
    save_image(tmp_path / "mask" / "half.jpg", (33, 25), mode="L")
    save_image(tmp_path / "mask" / "other.png", (48, 64), mode="L")
    (tmp_path / "mask" / "broken.png").write_bytes(b"")
    subset = SubsetSpec(
        image_dir=tmp_path / "img", conditioning_data_dir=tmp_path / "mask", class_tokens="x", random_crop=True
    )
    found = scan_subset(subset)
    assert [(r.path.name, r.mask and r.mask.name) for r in found.records] == [
        ("a.png", "a.png"),
        ("half.png", "half.jpg"),
    ]
    assert {str(fault) for fault in found.findings.faults} == {
        f"{tmp_path / 'mask' / 'other.png'} is 48x64 but its picture other.png is 64x48; give both one shape",
        f"{tmp_path / 'mask' / 'broken.png'} is empty (0 bytes); replace or remove it",
    }
    assert {fault.picture.name for fault in found.findings.faults} == {"other.png", "broken.png"}
    assert "masks of another size than their picture, brought to it: 1 (half.jpg)" in found.findings.notes


def test_masks_with_too_many_pixels_are_faults(tmp_path):
    for folder, size in (("img", (40, 30)), ("mask", (80, 60))):
        save_image(tmp_path / folder / "a.png", size)
    subset = SubsetSpec(
        image_dir=tmp_path / "img", conditioning_data_dir=tmp_path / "mask", class_tokens="x", max_image_pixels=1200
    )
    found = scan_subset(subset)
    (fault,) = found.findings.faults
    assert found.records == () and fault.picture == tmp_path / "img" / "a.png"
    assert str(fault).startswith(f"{tmp_path / 'mask' / 'a.png'} has 4,800 pixels (80x60), more than max_image_pixels")


def test_masks_are_training_pictures_of_no_dataset(tmp_path):
    for place in ("img/a.png", "img/sub/b.png", "img/masks/a.png", "img/masks/sub/b.png"):
        save_image(tmp_path / place)
    folder = SubsetSpec(image_dir=tmp_path / "img", class_tokens="x", recursive=True)
    masked = replace(folder, conditioning_data_dir=tmp_path / "img" / "masks")
    specs = [DatasetSpec(resolution=Size(64, 64), subsets=(subset,)) for subset in (folder, masked)]
    found = scan_datasets(specs, "data.toml")
    assert names(found) == ["a.png", "b.png"] * 2
    assert [record.dataset for record in found.records] == [0, 0, 1, 1]


def test_a_link_beside_its_picture_is_noted(tmp_path):
    save_image(tmp_path / "one" / "a.png")
    save_image(tmp_path / "two" / "c.png")
    (tmp_path / "one" / "b.png").symlink_to("a.png")
    (tmp_path / "one" / "c.png").symlink_to(tmp_path / "two" / "c.png")
    (tmp_path / "one" / "d.png").symlink_to("c.png")
    line = f"{tmp_path / 'one'}: links to a picture that is used already, trained once more: 2 (b.png, d.png)"
    found = scan(tmp_path / "one")
    assert found.findings.notes == (line,) and names(found) == ["a.png", "b.png", "c.png", "d.png"]
    (tmp_path / "one" / "b.png").unlink()
    (tmp_path / "one" / "d.png").unlink()
    assert scan(tmp_path / "one").findings.notes == ()


class TestOnAFlakyDrive:
    """Row E9 of the failures, while folders are looked at."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """Three pictures with captions; opening the files in `failures` fails as often as it says."""
        for name in "abc":
            save_image(tmp_path / "data" / f"{name}.png")
            (tmp_path / "data" / f"{name}.txt").write_text(name, encoding="utf-8")
        self.failures, self.code = {}, errno.EIO
        monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0))
        for owner in (builtins, Path):
            monkeypatch.setattr(owner, "open", self.flaky(owner.open))
        return tmp_path / "data"

    def flaky(self, real_open):
        def open_or_fail(path, *arguments, **options):
            name = os.path.basename(path) if isinstance(path, (str, Path)) else ""
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise OSError(self.code, os.strerror(self.code), str(path))
            return real_open(path, *arguments, **options)

        return open_or_fail

    def test_hiccups_are_survived(self, folder, caplog):
        self.failures = {"a.png": 3, "b.png": 1, "c.txt": 3}
        assert [record.caption for record in records_of(folder, caption_extension=".txt")] == ["a", "b", "c"]
        assert set(self.failures.values()) == {0}
        assert caplog.text.count("2 files cannot be read ([Errno 5]") == 1
        assert caplog.text.count("trying again in 0 s") == 6

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (errno.EIO, "(Input/output error); several attempts failed; look after the drive, then start again"),
            (errno.EACCES, "(Permission denied); make it readable"),
        ],
    )
    def test_what_stays_unreadable_is_a_problem_and_no_fault_of_a_picture(self, folder, code, reason):
        self.code, self.failures = code, {"a.png": 9, "c.txt": 9}
        found = scan(folder, caption_extension=".txt")
        assert names(found) == ["b.png"]
        assert found.findings.faults == ()
        assert sorted(found.findings.problems) == [f"{folder / name} cannot be read {reason}" for name in self.failures]

    def test_so_is_a_mask(self, folder, tmp_path):
        save_image(tmp_path / "masks" / "mask.png").rename(tmp_path / "masks" / "a.bmp")
        self.failures = {"a.bmp": 9}
        found = scan(folder, conditioning_data_dir=tmp_path / "masks")
        assert found.records == ()
        assert [fault.picture.name for fault in found.findings.faults] == ["b.png", "c.png"]
        assert "a.bmp cannot be read" in found.findings.problems[0]

    def test_folders_are_listed_again(self, folder, monkeypatch):
        real_scandir, failures = os.scandir, [errno.ESTALE]

        def flaky_scandir(path):
            if failures:
                raise OSError(failures.pop(), "hiccup", str(path))
            return real_scandir(path)

        monkeypatch.setattr(os, "scandir", flaky_scandir)
        assert len(records_of(folder)) == 3 and not failures


def test_regularisation_is_marked(tmp_path):
    save_image(tmp_path / "a.png")
    assert records_of(tmp_path, is_reg=True)[0].is_reg
    assert not records_of(tmp_path)[0].is_reg


class TestWithAnIndex:
    """Rows A18-A21 of the failures: nothing that has changed is taken from the index."""

    @pytest.fixture
    def folder(self, tmp_path):
        for number in (1, 10):
            save_image(tmp_path / "data" / f"img{number}.png", (40, 10 * number))
        return tmp_path / "data"

    def look(self, tmp_path, folder, **options):
        found = scan(folder, index=PictureIndex.open(tmp_path / "index"), **options)
        return {record.path.name: record.size for record in found.records}, found

    def test_a_second_scan_gives_the_same(self, tmp_path, folder):
        (folder / "bad.png").write_bytes(b"")
        first = self.look(tmp_path, folder)[1]
        assert self.look(tmp_path, folder)[1] == first

    def test_headers_are_not_read_again(self, tmp_path, folder):
        sizes, _ = self.look(tmp_path, folder)
        path = folder / "img1.png"
        index = PictureIndex.open(tmp_path / "index")
        index.forget(path)
        index.remember(path, file_state(path), PictureHeader(Size(1, 1)))  # not what reading it would show
        index.save()
        assert self.look(tmp_path, folder)[0] == {**sizes, path.name: Size(1, 1)}

    def test_a_picture_replaced_by_one_of_its_length_and_time_is_read_again(self, tmp_path, folder):
        self.look(tmp_path, folder)
        path = folder / "img1.png"
        stat = path.stat()
        save_image(path, (10, 40))
        path.write_bytes(path.read_bytes().ljust(stat.st_size, b"\0"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert self.look(tmp_path, folder)[0] == {"img1.png": Size(10, 40), "img10.png": Size(40, 100)}

    def test_a_replaced_picture_is_read_again(self, tmp_path, folder):
        self.look(tmp_path, folder)
        save_image(folder / "img1.png", (9, 9))
        assert self.look(tmp_path, folder)[0] == {"img1.png": Size(9, 9), "img10.png": Size(40, 100)}

    def test_renamed_and_deleted_pictures(self, tmp_path, folder):
        self.look(tmp_path, folder)
        (folder / "img10.png").rename(folder / "img100.png")
        assert self.look(tmp_path, folder)[0] == {"img1.png": Size(40, 10), "img100.png": Size(40, 100)}
        (folder / "img1.png").unlink()
        assert self.look(tmp_path, folder)[0] == {"img100.png": Size(40, 100)}
        (file,) = (tmp_path / "index").iterdir()
        assert list(json.loads(file.read_text())["files"]) == ["img100.png"]

    def test_captions_are_read_every_time(self, tmp_path, folder):
        captions = folder / "img1.txt"
        for text in ("one", "two"):
            captions.write_text(text, encoding="utf-8")
            found = self.look(tmp_path, folder, caption_extension=".txt")[1]
            assert found.records[0].caption == text


def test_many_pictures_in_many_threads_keep_their_order(tmp_path):
    first = save_image(tmp_path / "0.png", (12, 8))
    second = save_image(tmp_path / "1.png", (8, 12))
    for number in range(2, 300):
        os.link((first, second)[number % 2], tmp_path / f"{number}.png")
    records = records_of(tmp_path)
    assert [r.path.name for r in records] == [f"{number}.png" for number in range(300)]
    assert [r.size for r in records] == [Size(12, 8), Size(8, 12)] * 150
    subsets = (SubsetSpec(image_dir=tmp_path, class_tokens="x"),)
    specs = [DatasetSpec(resolution=Size(64, 64), subsets=subsets)]
    assert all(scan_datasets(specs, "", num_threads=number).records == records for number in (1, 5))


def test_pictures_without_a_face_in_their_name_are_told_where_faces_are_cut_out(tmp_path):
    for name in ("anna_6_4_3_3.png", "photo_2024_05_17_12.png", "tree.png"):
        save_image(tmp_path / name)
    notes = scan(tmp_path, face_crop_aug_range=(1.0, 2.0)).findings.notes
    names = "2 (photo_2024_05_17_12.png, tree.png)"
    assert [note for note in notes if "end in no face" in note and note.endswith(names)]
    assert not scan(tmp_path).findings.notes
