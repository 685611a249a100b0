"""Pairs of pictures and masks, and everything that keeps a picture from having exactly one."""

from pathlib import Path

import pytest

from library.data.config.specs import SubsetSpec
from library.data.files.mask_files import findings_of_folders, pair_masks


def pair(folder, images, masks, **options):
    """Pair pictures, which need not exist, with empty mask files."""
    for name in masks:
        (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "masks" / name).write_bytes(b"")
    root = folder / "images"
    subset = SubsetSpec(image_dir=root, conditioning_data_dir=folder / "masks", **options)
    return pair_masks([root / name for name in images], subset)


def told_of(folder, pictures, masks):
    """What is told of one folder of masks for several subsets. pictures: {folder: names}"""
    for name in masks:
        (folder / "masks").mkdir(exist_ok=True)
        (folder / "masks" / name).write_bytes(b"")
    paired = []
    for name, images in pictures.items():
        subset = SubsetSpec(image_dir=folder / name, conditioning_data_dir=folder / "masks")
        paired.append((subset, pair_masks([folder / name / image for image in images], subset)))
    return findings_of_folders(paired)


def names(pairs):
    return {image.name: mask.name for image, mask in pairs.masks.items()}


def test_same_stem_whatever_the_type(tmp_path):
    pairs = pair(tmp_path, ["a.png", "b.v1.jpg", "c.webp"], ["a.PNG", "b.v1.Bmp", "c.webp", "notes.txt", ".a.png"])
    assert names(pairs) == {"a.png": "a.PNG", "b.v1.jpg": "b.v1.Bmp", "c.webp": "c.webp"}
    assert pairs.findings == type(pairs.findings)()


def test_letter_case_matters_only_where_it_decides(tmp_path):
    assert names(pair(tmp_path, ["Dog.png", "a.png"], ["dog.png", "a.png"])) == {"Dog.png": "dog.png", "a.png": "a.png"}
    assert names(pair(tmp_path, ["dog.png"], ["DOG.png"])) == {"dog.png": "dog.png"}


def test_pictures_without_mask_and_masks_without_picture_are_all_listed(tmp_path):
    pairs = pair(tmp_path, ["a.png", "b.png", "c.png"], ["a.png", "x.png", "y.png"])
    assert names(pairs) == {"a.png": "a.png"}
    images, masks = tmp_path / "images", tmp_path / "masks"
    assert [str(fault) for fault in pairs.findings.faults] == [
        f"{images / 'b.png'} has no mask in {masks}; add a picture b.png there, or remove this one",
        f"{images / 'c.png'} has no mask in {masks}; add a picture c.png there, or remove this one",
    ]
    left_out = told_of(tmp_path, {"images": ["a.png", "b.png", "c.png"]}, ["a.png", "x.png", "y.png"]).left_out
    assert [str(fault) for fault in left_out] == [
        f"{masks / 'x.png'} is the mask of no picture of {images}",
        f"{masks / 'y.png'} is the mask of no picture of {images}",
    ]


def test_a_folder_of_several_subsets_has_masks_of_all_of_them(tmp_path):
    told = told_of(tmp_path, {"one": ["a.png"], "two": ["b.png"]}, ["a.png", "b.png", "x.png"])
    assert [str(fault) for fault in told.left_out] == [
        f"{tmp_path / 'masks/x.png'} is the mask of no picture of {tmp_path / 'one'} or {tmp_path / 'two'}"
    ]
    assert told.notes == ()


def test_a_mask_of_pictures_in_several_folders_is_told(tmp_path):
    (note,) = told_of(tmp_path, {"one": ["a.png"], "two": ["a.png", "b.png"]}, ["a.png", "b.png"]).notes
    assert "share because their names are equal: 1 (a.png, of" in note
    assert (tmp_path / "one" / "a.png").as_posix() in note and (tmp_path / "two" / "a.png").as_posix() in note


def test_one_picture_in_two_datasets_has_one_mask(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"")
    subset = SubsetSpec(image_dir=tmp_path / "one", conditioning_data_dir=tmp_path / "masks")
    pairs = pair_masks([tmp_path / "one" / "a.png"], subset)
    assert findings_of_folders([(subset, pairs), (subset, pairs)]).notes == ()


def test_two_masks_for_a_picture(tmp_path):
    pairs = pair(tmp_path, ["a.png"], ["a.png", "a.jpg"])
    assert pairs.masks == {}
    (fault,) = pairs.findings.faults
    assert fault.problem == f"has several masks in {tmp_path / 'masks'}: a.jpg, a.png; keep one"
    assert pairs.unowned == ()


def test_two_pictures_cannot_share_a_mask(tmp_path):
    pairs = pair(tmp_path, ["a.jpg", "a.png"], ["a.png"])
    assert names(pairs) == {"a.jpg": "a.png"}
    (fault,) = pairs.findings.faults
    assert fault.problem == f"and a.jpg share the mask {tmp_path / 'masks/a.png'}; rename one"


def test_masks_of_sub_folders(tmp_path):
    pairs = pair(tmp_path, ["one/a.png", "two/a.png", "a.png"], ["one/a.png", "two/a.png", "a.jpg"], recursive=True)
    found = {
        image.relative_to(tmp_path).as_posix(): mask.relative_to(tmp_path).as_posix()
        for image, mask in pairs.masks.items()
    }
    assert found == {
        "images/one/a.png": "masks/one/a.png",
        "images/two/a.png": "masks/two/a.png",
        "images/a.png": "masks/a.jpg",
    }


def test_pictures_elsewhere_have_masks_of_their_stem(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"")
    subset = SubsetSpec(image_dir=None, metadata_file=tmp_path / "d.json", conditioning_data_dir=tmp_path / "masks")
    pairs = pair_masks([tmp_path / "anywhere" / "a.jpg"], subset)
    assert names(pairs) == {"a.jpg": "a.png"}


def pair_of_metadata(folder, images, masks, image_dir):
    for name in masks:
        (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "masks" / name).write_bytes(b"")
    subset = SubsetSpec(image_dir=image_dir, metadata_file=folder / "d.json", conditioning_data_dir=folder / "masks")
    pairs = pair_masks(images, subset)
    return [mask.relative_to(folder / "masks").as_posix() for mask in pairs.masks.values()], pairs.findings.faults


@pytest.mark.parametrize("image_dir", [None, "images"])
def test_pictures_elsewhere_of_one_stem_have_masks_in_folders_of_their_name(tmp_path, image_dir):
    images = [tmp_path / "far" / name for name in ("one/a.png", "two/a.png", "b.png")]
    root = image_dir and tmp_path / image_dir
    given = ["one/a.png", "far/two/a.png", "b.png", "a.png"]
    assert pair_of_metadata(tmp_path, images, given, root) == (["one/a.png", "far/two/a.png", "b.png"], ())


def test_pictures_elsewhere_of_one_stem_share_the_only_mask(tmp_path):
    images = [tmp_path / name / "a.png" for name in ("one", "two")]
    masks, (fault,) = pair_of_metadata(tmp_path, images, ["a.png"], None)
    assert masks == ["a.png"] and "and a.png share the mask" in fault.problem


def test_a_relative_image_dir_and_absolute_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [tmp_path / "images" / name for name in ("one/a.png", "two/a.png", "a.png")]
    given = ["one/a.png", "two/a.png", "a.png"]
    assert pair_of_metadata(tmp_path, images, given, Path("images")) == (given, ())
    assert pair_of_metadata(tmp_path, [Path("images/one/a.png")], given, tmp_path / "images") == (["one/a.png"], ())


def test_folders_of_masks_are_read_through_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "masks" / "round").symlink_to(tmp_path / "masks")
    pairs = pair(tmp_path, ["one/a.png", "b.png"], ["b.png"], recursive=True)
    assert names(pairs) == {"a.png": "a.png", "b.png": "b.png"}
    assert [remark.partition(" is ")[0] for remark in pairs.findings.remarks] == [str(tmp_path / "masks" / "round")]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("none", "does not exist; name the folder with the masks"),
        ("file", "is a file; name the folder it is in"),
        ("empty", "has no pictures; put a mask for every picture there"),
        ("images", "is image_dir itself; name the folder with the masks"),
    ],
)
@pytest.mark.parametrize("recursive", [False, True])
def test_folders_without_masks(tmp_path, folder, message, recursive):
    (tmp_path / "images").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    place = tmp_path / folder
    subset = SubsetSpec(image_dir=tmp_path / "images", conditioning_data_dir=place, recursive=recursive)
    pairs = pair_masks([tmp_path / "images" / "a.png"], subset)
    assert pairs.masks == {}
    assert pairs.findings.problems == (f"conditioning_data_dir {place} {message}",)
    assert pairs.findings.faults == ()


def test_the_current_folder_as_image_dir(tmp_path, monkeypatch):
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        (tmp_path / "masks" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    subset = SubsetSpec(image_dir=Path("."), conditioning_data_dir=Path("masks"), recursive=True)
    pairs = pair_masks([Path("a.png"), Path("sub/a.png")], subset)
    assert list(pairs.masks.values()) == [Path("masks/a.png"), Path("masks/sub/a.png")]
