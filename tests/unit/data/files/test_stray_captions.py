"""Caption files without picture, with an ending in another letter case, or in a marked encoding."""

from pathlib import Path

import pytest

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.stray_captions import StrayCaptions, find_stray_captions
from library.records import Size


def spec(*folders, **keys):
    subsets = tuple(SubsetSpec(image_dir=folder, caption_extension=".txt", **keys) for folder in folders)
    return [DatasetSpec(resolution=Size(64, 64), subsets=subsets)]


def files(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("text")


def names(paths):
    return [Path(path).name for path in paths]


@pytest.mark.parametrize("picture", ["a.png", "A.png", "a.heic", "a.mp4"])
def test_a_caption_beside_any_picture_is_no_orphan(tmp_path, picture):
    files(tmp_path, picture, "a.txt", "a.caption", "p_1.png", "b_2.txt", "c.json")
    assert names(find_stray_captions(spec(tmp_path)).orphans) == ["b_2.txt"]


def test_an_ending_of_several_parts_is_one(tmp_path):
    files(tmp_path, "a1.png", "a1.tags.txt", "b2.tags.txt")
    found = find_stray_captions([DatasetSpec(resolution=Size(64, 64), subsets=(subset(tmp_path, ".tags.txt"),))])
    assert names(found.orphans) == ["b2.tags.txt"]


def subset(folder, extension):
    return SubsetSpec(image_dir=folder, caption_extension=extension)


def test_what_was_set_aside_and_folders_that_are_not_read_do_not_count(tmp_path):
    files(tmp_path, "a.png", "a.txt")
    files(tmp_path / ".set_aside", "b.txt")
    files(tmp_path / "deeper", "c.txt")
    assert find_stray_captions(spec(tmp_path)) == StrayCaptions()
    assert names(find_stray_captions(spec(tmp_path, recursive=True)).doubtful) == ["c.txt"]


def test_an_ending_in_capitals_is_renamed_where_the_name_is_free(tmp_path):
    files(tmp_path, "a.png", "a.TXT", "b.png", "b.Txt", "b.txt")
    found = find_stray_captions(spec(tmp_path))
    assert (found.endings, found.names) == (((tmp_path / "a.TXT", tmp_path / "a.txt"),), ())


@pytest.mark.parametrize(
    ("pictures", "caption", "right"),
    [
        (("a.png",), "a.png.txt", "a.txt"),
        (("a.png", "a.jpg"), "a.png.txt", "a.txt"),
        (("gru\u0308n.png",), "gr\u00fcn.txt", "gru\u0308n.txt"),
        (("gr\u00fcn.png",), "gru\u0308n.txt", "gr\u00fcn.txt"),
        (("a.png", "a.png.png"), "a.png.txt", None),  # a caption that is read
    ],
)
def test_a_name_that_is_written_otherwise_is_renamed_and_no_orphan(tmp_path, pictures, caption, right):
    files(tmp_path, *pictures, caption)
    found = find_stray_captions(spec(tmp_path))
    assert found.names == (() if right is None else ((tmp_path / caption, tmp_path / right),))
    assert (found.orphans, found.doubtful) == ((), ())


def test_a_name_that_is_taken_is_no_target(tmp_path):
    files(tmp_path, "a.png", "a.png.txt", "a.txt")
    assert find_stray_captions(spec(tmp_path)) == StrayCaptions()


@pytest.mark.parametrize(
    "name",
    [
        *("README.txt", "my_prompts.txt", "licence_1.txt", "b 1.txt", "b.txt", "b_2.caption", "b_3.TXT"),
        *("classes.txt", "my_tags.txt", "trigger.txt", "cat.txt"),
    ],
)
def test_texts_that_may_be_something_else_are_doubtful(tmp_path, name):
    files(tmp_path, "a_1.png", "my_dog.png", "dog.png", name)
    found = find_stray_captions(spec(tmp_path))
    assert (names(found.orphans), names(found.doubtful)) == ([], [name])


def test_a_text_of_another_file_is_doubtful(tmp_path):
    files(tmp_path, "a_1.png", "a_2.txt", "a_2.pdf")
    assert names(find_stray_captions(spec(tmp_path)).doubtful) == ["a_2.txt"]


def test_files_that_options_or_links_name_are_doubtful(tmp_path):
    files(tmp_path / "p", "a_1.png", "a_2.txt", "a_3.txt", "a_4.txt")
    files(tmp_path / "q", "b.png")
    (tmp_path / "q" / "b.txt").symlink_to(tmp_path / "p" / "a_3.txt")
    found = find_stray_captions(spec(tmp_path / "p", tmp_path / "q"), {str((tmp_path / "p" / "a_2.txt").resolve())})
    assert (names(found.orphans), names(found.doubtful)) == (["a_4.txt"], ["a_2.txt", "a_3.txt"])


def test_encodings_are_told_that_are_marked_or_declared(tmp_path):
    files(tmp_path, "a.png", "b.png", "c.png", "d.png", "a.txt")
    (tmp_path / "b.txt").write_bytes("é".encode("utf-16"))
    (tmp_path / "c.txt").write_bytes("é".encode("utf-8-sig"))
    (tmp_path / "d.txt").write_bytes("é".encode("latin-1"))
    assert [codec for _, codec, _ in find_stray_captions(spec(tmp_path)).encoded] == ["utf-16", "utf-8-sig"]
    found = find_stray_captions(spec(tmp_path, caption_encoding="cp1252")).encoded
    assert found[-1] == (tmp_path / "d.txt", "cp1252", "cp1252")


def test_a_folder_of_two_subsets_is_looked_at_once(tmp_path):
    files(tmp_path, "a1.png", "b2.txt")
    assert names(find_stray_captions(spec(tmp_path, tmp_path)).orphans) == ["b2.txt"]
