"""Captions and tags of a folder go into a metadata file that a training reads; nothing that is there is lost."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.merge_captions_to_metadata import main as merge_captions
from finetune.merge_dd_tags_to_metadata import main as merge_tags
from library.data.config.specs import SubsetSpec
from library.data.files.metadata_file import read_metadata
from library.data.plan.captions import CaptionRules
from library.preparing.metadata.metadata_files import read_metadata_file, write_metadata_file
from library.preparing.metadata.tag_lists import normal_tags


def picture(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """a.png and sub/a.png, both with caption and tags."""
    root = tmp_path / "pictures"
    for name, caption, tags in (("a.png", "one", "x,y"), ("sub/a.png", "two", "z, x,z")):
        path = picture(root / name)
        path.with_suffix(".caption").write_text(caption)
        path.with_suffix(".txt").write_text(tags)
    return root


def run(tool, *arguments):
    return tool([str(argument) for argument in arguments])


def trained(file, root, **rules):
    """{path: caption} as a training reads the file."""
    reading = read_metadata(SubsetSpec(image_dir=root, metadata_file=file, captions=CaptionRules(**rules)))
    assert reading.findings.problems == reading.findings.faults == ()
    return {entry.path: entry.caption for entry in reading.entries}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("full", [[], ["--full_path"]])
def test_captions_and_tags_are_what_a_training_reads(tmp_path, folder, ending, full):
    file = tmp_path / f"meta.{ending}"
    assert run(merge_captions, folder, file, "--recursive", *full) == 0
    assert run(merge_tags, folder, file, "--recursive", *full) == 0
    assert trained(file, None if full else folder, caption_separator=", ") == {
        folder / "a.png": "one, x, y",
        folder / "sub" / "a.png": "two, z, x",
    }
    names = [str(folder / "a.png"), str(folder / "sub" / "a.png")] if full else ["a.png", "sub/a.png"]
    assert list(read_metadata_file(file, "")) == names


def test_sub_folders_are_only_read_when_asked(tmp_path, folder):
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    assert json.loads((tmp_path / "m.json").read_text()) == {"a.png": {"caption": "one", "image_size": [6, 4]}}


def test_all_lines_of_a_caption_are_kept_and_the_first_is_used(tmp_path, folder):
    (folder / "a.caption").write_bytes("\ufeff\r\n one \r\n\r\ntwo\r\n".encode("utf-16-le"))
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    assert read_metadata_file(tmp_path / "m.json", "")["a.png"]["caption"] == "one\ntwo"
    assert trained(tmp_path / "m.json", folder) == {folder / "a.png": "one"}
    assert trained(tmp_path / "m.json", folder, enable_wildcard=True) == {folder / "a.png": "one\ntwo"}


def test_sizes_are_those_of_the_picture_as_it_is_seen(tmp_path, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 2)).save(folder / "a.png", exif=exif)
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    assert read_metadata_file(tmp_path / "m.json", "")["a.png"]["image_size"] == [2, 8]


@pytest.mark.parametrize("flag", ["--caption_extension", "--caption_extention"])
@pytest.mark.parametrize("extension", [".txt", "txt"])
def test_captions_may_have_another_ending(tmp_path, folder, flag, extension):
    assert run(merge_captions, folder, tmp_path / "m.json", flag, extension) == 0
    assert read_metadata_file(tmp_path / "m.json", "")["a.png"]["caption"] == "x,y"


@pytest.mark.parametrize(
    ("text", "tags"),
    [("b,a\n c ,, a", "b, a, c"), ("{a, b|c, b}", "{a, b|c, b}"), ("", ""), ("^_^,(o)_(o) , ^_^", "^_^, (o)_(o)")],
)
def test_tags_are_separated_alike_and_each_is_there_once(text, tags):
    assert normal_tags(text) == tags


def test_a_picture_without_caption_is_told_and_keeps_what_it_has(tmp_path, folder, capsys):
    file = tmp_path / "m.json"
    write_metadata_file(file, {"sub/a.png": {"caption": "kept"}})
    (folder / "sub" / "a.caption").unlink()
    assert run(merge_captions, folder, file, "--recursive") == 0
    assert read_metadata_file(file, "")["sub/a.png"] == {"caption": "kept", "image_size": [6, 4]}
    assert "pictures without a .caption file, of which only the size is noted: 1 (a.png)" in capsys.readouterr().err


def test_a_file_without_text_does_not_empty_an_entry_and_is_told(tmp_path, folder, capsys):
    run(merge_captions, folder, tmp_path / "m.json")
    (folder / "a.caption").write_text(" \n")
    (folder / "sub" / "a.caption").write_text("")
    assert run(merge_captions, folder, tmp_path / "m.json", "--recursive") == 0
    entries = read_metadata_file(tmp_path / "m.json", "")
    assert [entry["caption"] for entry in entries.values()] == ["one", ""]
    told = capsys.readouterr().err
    assert "files without text, entries keep the text that they have: 1 (a.caption)" in told
    assert "files without text, an empty text is noted: 1 (a.caption)" in told


def test_texts_that_are_replaced_are_named(tmp_path, folder, capsys):
    run(merge_captions, folder, tmp_path / "m.json")
    (folder / "a.caption").write_text("by hand, in the text file")
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    told = capsys.readouterr().err
    assert told.count("texts of entries that the text files replace: 1 (a.png)") == 1
    run(merge_tags, folder, tmp_path / "m.json")
    assert "that the text files replace" not in capsys.readouterr().err


def test_captions_that_are_nowhere_are_an_error_that_names_the_ending_that_is_there(tmp_path, folder, capsys):
    (folder / "a.caption").unlink()
    assert run(merge_captions, folder, tmp_path / "m.json") == 2
    assert "has no .caption files but .txt files" in capsys.readouterr().err
    (folder / "a.txt").unlink()
    assert run(merge_captions, folder, tmp_path / "m.json") == 2
    assert "none of its pictures has a .caption file" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_broken_pictures_and_texts_are_listed_and_the_rest_is_written(tmp_path, folder, capsys):
    file = tmp_path / "m.json"
    write_metadata_file(file, {"broken.png": {"caption": "mine"}})
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.caption").write_bytes(b"gr\xfcn")  # told once, as a picture
    picture(folder / "latin.png")
    (folder / "latin.caption").write_bytes(b"gr\xfcn")
    picture(folder / "two.png"), picture(folder / "two.jpg")
    (folder / "two.caption").write_text("whose?")
    assert run(merge_captions, folder, file) == 2
    told = capsys.readouterr().err
    assert "4 pictures were passed over" in told
    for words in ("broken.png is damaged", "latin.caption is not UTF-8", "shares the caption file two.caption"):
        assert words in told
    (folder / "broken.caption").unlink()
    assert run(merge_captions, folder, file) == 2
    assert "pictures without" not in capsys.readouterr().err  # a broken one gets no entry, with a caption or without
    assert list(read_metadata_file(file, "")) == ["a.png", "broken.png"]
    assert read_metadata_file(file, "")["broken.png"] == {"caption": "mine"}


@pytest.mark.parametrize(
    ("tool", "key", "ending"), [(merge_captions, "caption", "caption"), (merge_tags, "tags", "txt")]
)
def test_the_encoding_of_texts_can_be_told(tmp_path, folder, capsys, tool, key, ending):
    (folder / f"a.{ending}").write_bytes(b"gr\xfcn")
    assert run(tool, folder, tmp_path / "m.json", "--caption_encoding=cp1252") == 0
    assert read_metadata_file(tmp_path / "m.json", "")["a.png"][key] == "grün"
    assert ": 1 entry (1 new" in capsys.readouterr().err
    assert run(tool, folder, tmp_path / "n.json", "--caption_encoding=nothing") == 2
    assert "--caption_encoding nothing is not known" in capsys.readouterr().err


def test_equal_stems_are_told_apart(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        picture(tmp_path / "p" / name)
    (tmp_path / "p" / "b.txt").write_text("x")
    assert run(merge_tags, tmp_path / "p", tmp_path / "m.json") == 0
    assert list(read_metadata_file(tmp_path / "m.json", "")) == ["a.jpg", "a.png", "b.png"]


@pytest.mark.parametrize("spelling", ["a", "./a.png", ".\\a.png", "sub/../a.png", "{root}/a.png", "{root}/a", "{here}"])
def test_other_spellings_of_a_name_are_recognised(tmp_path, folder, capsys, spelling, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = spelling.format(root=folder, here="pictures/a.png")
    write_metadata_file(tmp_path / "m.json", {name: {"caption": "old", "mine": 7}})
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    assert read_metadata_file(tmp_path / "m.json", "") == {"a.png": {"caption": "one", "mine": 7, "image_size": [6, 4]}}
    assert f'"{name}" is now "a.png"' in capsys.readouterr().err


def test_a_name_through_a_linked_folder_is_recognised(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    write_metadata_file(tmp_path / "m.json", {f"{tmp_path}/link/a.png": {}})
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    assert list(read_metadata_file(tmp_path / "m.json", "")) == ["a.png"]


def test_two_entries_of_one_picture_are_refused(tmp_path, folder, capsys):
    write_metadata_file(tmp_path / "m.json", {"a": {}, "a.png": {}})
    before = (tmp_path / "m.json").read_bytes()
    assert run(merge_captions, folder, tmp_path / "m.json") == 2
    assert 'the entries "a" and "a.png" are both of' in capsys.readouterr().err
    assert (tmp_path / "m.json").read_bytes() == before


def test_an_entry_that_may_be_one_of_several_pictures_is_refused(tmp_path, folder, capsys):
    picture(folder / "a.jpg")
    write_metadata_file(tmp_path / "m.json", {"a": {}})
    assert run(merge_captions, folder, tmp_path / "m.json") == 2
    assert 'entry "a" may be one of several pictures: a.jpg, a.png' in capsys.readouterr().err


def test_entries_of_other_pictures_stay_and_absent_ones_are_told(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "gone.png")  # not where a training looks
    kept = {"gone.png": {"caption": "g"}, "sub/a.png": {"tags": "t"}}
    write_metadata_file(tmp_path / "m.json", kept)
    assert run(merge_captions, folder, tmp_path / "m.json") == 0
    entries = read_metadata_file(tmp_path / "m.json", "")
    assert {name: entries[name] for name in kept} == kept
    told = capsys.readouterr().err
    assert "whose pictures are not there: 1 (gone.png)" in told
    assert "3 entries (1 new, 0 updated, 0 as they were, 2 of other pictures)" in told


def test_another_file_is_taken_over_and_left_as_it_is(tmp_path, folder):
    write_metadata_file(tmp_path / "in.jsonl", {"a": {"mine": 1}})
    before = (tmp_path / "in.jsonl").read_bytes()
    assert run(merge_captions, folder, tmp_path / "out.json", "--in_json", tmp_path / "in.jsonl") == 0
    assert read_metadata_file(tmp_path / "out.json", "")["a.png"]["mine"] == 1
    assert (tmp_path / "in.jsonl").read_bytes() == before


def test_what_only_the_file_to_write_has_is_not_lost(tmp_path, folder, capsys):
    write_metadata_file(tmp_path / "in.json", {})
    write_metadata_file(tmp_path / "out.json", {"a.png": {"tags": "by hand"}})
    assert run(merge_captions, folder, tmp_path / "out.json", "--in_json", tmp_path / "in.json") == 2
    assert "a.png (tags)" in capsys.readouterr().err
    assert read_metadata_file(tmp_path / "out.json", "") == {"a.png": {"tags": "by hand"}}


def test_corrected_texts_of_the_file_to_write_only_go_with_overwrite(tmp_path, folder, capsys):
    write_metadata_file(tmp_path / "in.json", {})
    write_metadata_file(tmp_path / "out.json", {"a.png": {"caption": "by hand"}})
    command = (merge_captions, folder, tmp_path / "out.json", "--in_json", tmp_path / "in.json")
    assert run(*command) == 2
    assert read_metadata_file(tmp_path / "out.json", "") == {"a.png": {"caption": "by hand"}}
    assert run(*command, "--overwrite") == 0
    assert read_metadata_file(tmp_path / "out.json", "")["a.png"]["caption"] == "one"


def test_overwrite_without_another_file_to_read_has_no_effect_and_is_told(tmp_path, folder, capsys):
    write_metadata_file(tmp_path / "m.json", {"gone.png": {"mine": 1}})
    assert run(merge_captions, folder, tmp_path / "m.json", "--overwrite") == 0
    assert "--overwrite has no effect" in capsys.readouterr().err
    assert "gone.png" in read_metadata_file(tmp_path / "m.json", "")


COMPOSED, APART = "gr\u00fcn", "gru\u0308n"


@pytest.mark.parametrize(
    ("on_disk", "text", "named"), [(APART, COMPOSED, COMPOSED), (COMPOSED, APART, f"./{APART}.png")]
)
def test_names_of_other_characters_for_the_same_letters_are_recognised(tmp_path, capsys, on_disk, text, named):
    root = tmp_path / "p"
    picture(root / f"{on_disk}.png"), picture(root / "o.png")
    (root / f"{text}.caption").write_text("green")
    write_metadata_file(tmp_path / "m.json", {named: {"mine": 1}})
    assert run(merge_captions, root, tmp_path / "m.json") == 0
    entries = read_metadata_file(tmp_path / "m.json", "")
    assert entries == {
        f"{on_disk}.png": {"mine": 1, "caption": "green", "image_size": [6, 4]},
        "o.png": {"image_size": [6, 4]},
    }
    assert f"as one sign or two, read all the same: 1 ({text}.caption)" in capsys.readouterr().err


def test_the_text_of_another_picture_is_not_taken_for_its_look(tmp_path):
    root = tmp_path / "p"
    picture(root / f"{APART}.png"), picture(root / f"{COMPOSED}.png")
    (root / f"{COMPOSED}.caption").write_text("green")
    assert run(merge_captions, root, tmp_path / "m.json") == 0
    entries = read_metadata_file(tmp_path / "m.json", "")
    assert ["caption" in entries[f"{name}.png"] for name in (COMPOSED, APART)] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.txt"], "OUT_JSON must end in .json or .jsonl"),
        (["no/m.json"], "the folder no does not exist"),
        (["m.json", "--in_json", "gone.json"], "--in_json: gone.json does not exist"),
        (["m.json", "--caption_extension", "a/b"], "--caption_extension needs the ending of files"),
        ([], "OUT_JSON is needed"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(tmp_path, folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(merge_captions, "pictures", *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line


def test_debug_tells_each_picture(tmp_path, folder, capsys):
    assert run(merge_captions, folder, tmp_path / "m.json", "--debug") == 0
    assert "a.png: new, caption 'one'" in capsys.readouterr().err


POOL = ("a.png", "a b.png", "c.d.jpg", "ü.png", "img2.png", "sub/a.png", "sub/deep/x.webp")
SPELLINGS = (
    lambda name, root: name,
    lambda name, root: os.path.splitext(name)[0],
    lambda name, root: f"./{name}",
    lambda name, root: name.replace("/", "\\"),
    lambda name, root: str(root / name),
)


@settings(max_examples=40)
@given(
    texts=st.dictionaries(st.sampled_from(POOL), st.sampled_from(["one", "two\nlines", "", "a, b, a"]), min_size=1),
    existing=st.dictionaries(st.sampled_from((*POOL, "gone.png")), st.sampled_from(SPELLINGS)),
    full=st.booleans(),
    ending=st.sampled_from(["json", "jsonl"]),
)
def test_merging_again_changes_nothing_and_no_entry_is_lost(pool, texts, existing, full, ending):
    for text in pool.rglob("*.txt"):
        text.unlink()
    for name, text in texts.items():
        (pool / name).with_suffix(".txt").write_text(text)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, f"m.{ending}")
        entries = {spell(name, pool): {"caption": f"of {name}", "mine": name} for name, spell in existing.items()}
        write_metadata_file(file, entries)
        flags = ["--recursive", *(["--full_path"] if full else [])]
        assert run(merge_tags, pool, file, *flags) == 0
        once = file.read_bytes()
        assert run(merge_tags, pool, file, *flags) == 0
        assert file.read_bytes() == once
        kept = {entry["mine"]: entry for entry in read_metadata_file(file, "").values() if "mine" in entry}
        assert kept.keys() == existing.keys()
        assert all(entry["caption"] == f"of {name}" for name, entry in kept.items())
        subset = SubsetSpec(image_dir=pool, metadata_file=file, missing_caption="allow", empty_caption="allow")
        reading = read_metadata(subset)
        assert reading.findings.problems == ()
        assert len(reading.findings.faults) == ("gone.png" in existing)
        assert {entry.path for entry in reading.entries} == {pool / name for name in POOL}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    for name in POOL:
        picture(root / name)
    return root
