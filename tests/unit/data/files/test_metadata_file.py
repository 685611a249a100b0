"""Metadata files in JSON and JSONL: pictures, captions with tags, and everything that can be wrong."""

import json
from pathlib import Path

import pytest

from library.data.config.specs import SubsetSpec
from library.data.files.metadata_file import join_caption_and_tags, read_metadata
from library.data.plan.captions import CaptionRules
from library.records import Size

WILDCARDS = CaptionRules(enable_wildcard=True)


def read(folder, content, *, pictures=("a.png", "b.png"), name="data.json", is_rooted=True, **options):
    """Write a metadata file (text, an object, or a list of JSONL objects) and empty pictures; read it."""
    images = folder / "images"
    for picture in pictures:
        (images / picture).parent.mkdir(parents=True, exist_ok=True)
        (images / picture).write_bytes(b"")
    file = folder / name
    if isinstance(content, list):
        content = "\n".join(json.dumps(entry) for entry in content)
    elif not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_metadata(SubsetSpec(image_dir=images if is_rooted else None, metadata_file=file, **options))


def captions(reading):
    return {entry.path.name: entry.caption for entry in reading.entries}


def problem(reading):
    assert reading.entries == ()
    (text,) = reading.findings.problems
    return text


def fault(reading):
    (found,) = reading.findings.faults
    return found


def test_json(tmp_path):
    content = {
        "b.png": {"caption": "a dog", "tags": "dog, grass", "image_size": [64, 32], "train_resolution": [64, 32]},
        "a.png": {"tags": "cat"},
    }
    reading = read(tmp_path, content)
    assert [entry.path for entry in reading.entries] == [tmp_path / "images/b.png", tmp_path / "images/a.png"]
    assert captions(reading) == {"b.png": "a dog,dog, grass", "a.png": "cat"}
    assert [entry.size for entry in reading.entries] == [Size(64, 32), None]
    assert reading.findings == type(reading.findings)()


def test_jsonl(tmp_path):
    lines = '{"image_path": "a.png", "caption": "cat"}\r\n\n{"image_path": "b.png", "tags": "dog"}\n'
    reading = read(tmp_path, lines, name="data.JSONL")
    assert captions(reading) == {"a.png": "cat", "b.png": "dog"}
    assert reading.findings.problems == reading.findings.faults == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    assert captions(read(tmp_path, '{"a.png": {"caption": "Käse"}}'.encode(encoding))) == {"a.png": "Käse"}


def test_absolute_and_nested_names(tmp_path):
    outside = tmp_path / "elsewhere" / "x.png"
    outside.parent.mkdir()
    outside.write_bytes(b"")
    content = {str(outside): {"caption": "one"}, "sub/c.png": {"caption": "two"}}
    reading = read(tmp_path, content, pictures=["sub/c.png"])
    assert [entry.path for entry in reading.entries] == [outside, tmp_path / "images/sub/c.png"]
    absolute_only = read(tmp_path, {str(outside): {"caption": "one"}}, is_rooted=False)
    assert captions(absolute_only) == {"x.png": "one"}


def test_relative_names_need_a_root(tmp_path):
    reading = read(tmp_path, {"a.png": {"caption": "x"}, "b.png": {"caption": "y"}}, is_rooted=False)
    assert problem(reading) == (
        f"{tmp_path / 'data.json'} has relative names: 2 (a.png, b.png); set image_dir "
        "(with --in_json: --train_data_dir), where they start"
    )


def test_stems_mean_the_one_picture_that_has_them(tmp_path):
    content = {"a": {"caption": "cat"}, "b.v1": {"caption": "dog"}, "sub/c": {"caption": "cow"}}
    reading = read(tmp_path, content, pictures=["a.WebP", "a.txt", "b.v1.png", "sub/c.jpg", ".a.png"])
    assert captions(reading) == {"a.WebP": "cat", "b.v1.png": "dog", "c.jpg": "cow"}


def test_stem_of_several_pictures_names_them(tmp_path):
    found = fault(read(tmp_path, {"a": {"caption": "cat"}}, pictures=["a.png", "a.jpg"]))
    assert found.path == tmp_path / "images/a"
    assert found.problem == (
        f"may be one of several pictures: a.jpg, a.png; write the whole name (named by {tmp_path / 'data.json'})"
    )


def test_missing_pictures_are_all_listed(tmp_path):
    content = {"no.png": {"caption": "x"}, "a.png": {"caption": "x"}, "sub\\b.png": {"caption": "x"}, "x": {}}
    reading = read(tmp_path, content)
    assert captions(reading) == {"a.png": "x"}
    faults = reading.findings.faults
    assert [f.path.name for f in faults] == ["no.png", "sub\\b.png", "x"]
    assert faults[0].problem.startswith("does not exist; correct the name, or remove the entry")
    assert faults[1].problem.startswith("does not exist; write / instead of \\ in names")
    assert all(f.problem.endswith(f"(named by {tmp_path / 'data.json'})") for f in faults)


@pytest.mark.parametrize(
    ("caption", "tags", "rules", "text"),
    [
        ("a cat", "cat, fur", CaptionRules(), "a cat,cat, fur"),
        ("a cat", "cat;fur", CaptionRules(caption_separator=";"), "a cat;cat;fur"),
        ("", "cat, fur", CaptionRules(), "cat, fur"),
        ("a cat", "", CaptionRules(), "a cat"),
        ("one\ntwo", "cat", CaptionRules(), "one,cat"),
        ("one\n\n two ", "cat\nfur", WILDCARDS, "one,cat,fur\ntwo,cat,fur"),
        ("", "cat\nfur", WILDCARDS, "cat,fur"),
        ("", "cat\nfur", CaptionRules(), "cat,fur"),
        ("one\ntwo", "", WILDCARDS, "one\ntwo"),
        (" \n", "\n", WILDCARDS, ""),
    ],
)
def test_caption_and_tags_are_joined(caption, tags, rules, text):
    assert join_caption_and_tags(caption, tags, rules) == text


def test_lines_that_are_not_used_are_counted(tmp_path):
    reading = read(tmp_path, {"a.png": {"caption": "one\ntwo"}})
    assert reading.findings.notes == (
        f"{tmp_path / 'data.json'}: captions with several lines, of which only the first is used "
        "(enable_wildcard uses all): 1 (a.png)",
    )
    assert read(tmp_path, {"a.png": {"caption": "one\ntwo"}}, captions=WILDCARDS).findings.notes == ()


def test_entries_without_caption(tmp_path):
    found = fault(read(tmp_path, {"a.png": {"caption": None}}))
    assert str(found) == (
        f'{tmp_path / "data.json"} entry "a.png": has no caption and no tags; write them, or set class_tokens or '
        'missing_caption = "allow"'
    )
    assert found.picture == tmp_path / "images/a.png"
    assert captions(read(tmp_path, {"a.png": {}}, class_tokens="cat")) == {"a.png": "cat"}
    allowed = read(tmp_path, {"a.png": {}}, missing_caption="allow")
    assert captions(allowed) == {"a.png": ""}
    assert "entries without caption, tags and class_tokens" in allowed.findings.notes[0]


def test_entries_without_text(tmp_path):
    assert "has no text; write a caption into it" in fault(read(tmp_path, {"a.png": {"caption": " "}})).problem
    allowed = read(tmp_path, {"a.png": {"tags": ""}}, empty_caption="allow")
    assert captions(allowed) == {"a.png": ""}
    assert allowed.findings.notes[0].endswith(": 1 (a.png)")
    tokens = read(tmp_path, {"a.png": {"tags": ""}}, empty_caption="class_tokens", class_tokens="cat")
    assert captions(tokens) == {"a.png": "cat"}


def test_unused_keys_are_counted(tmp_path):
    content = {name: {"caption": "x", "rating": 3, "source": "web"} for name in ("a.png", "b.png")}
    content["b.png"].pop("source")
    reading = read(tmp_path, content)
    assert reading.findings.remarks == (f"{tmp_path / 'data.json'}: keys that are not used: rating (2), source (1)",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption": ["a"]}, "caption must be a text, got ['a']"),
        ({"tags": 3}, "tags must be a text, got 3"),
        ({"caption": "a \ud800 b"}, "caption holds half a character ('a \\ud800 b'); write the whole one"),
        ({"caption": "x", "tags": "\udc00"}, "tags holds half a character ('\\udc00'); write the whole one"),
        ({"caption": "x", "image_size": "64x32"}, "image_size must be [width, height] in pixels, got '64x32'"),
        ({"caption": "x", "image_size": [64]}, "image_size must be [width, height] in pixels, got [64]"),
        ({"caption": "x", "image_size": [0, 4]}, "image_size must be [width, height] in pixels, got [0, 4]"),
        ({"caption": "x", "image_size": [True, 4]}, "image_size must be [width, height] in pixels, got [True, 4]"),
    ],
)
def test_wrong_types_are_listed_with_their_picture(tmp_path, values, message):
    reading = read(tmp_path, {"a.png": values, "b.png": {"caption": "fine"}})
    assert captions(reading) == {"b.png": "fine"}
    assert str(fault(reading)) == f'{tmp_path / "data.json"} entry "a.png": {message}'
    assert fault(reading).picture == tmp_path / "images/a.png"


def test_bad_json_has_its_place(tmp_path):
    text = '{\n  "a.png": {"caption": "x"},\n  "b.png": {"caption": x}\n}'
    assert problem(read(tmp_path, text)) == (
        f"{tmp_path / 'data.json'} is not JSON (line 3, column 24: Expecting value); mend it or make it again"
    )


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        ("[" * 200_000 + "]" * 200_000, "column 1", "Brackets nested too deeply"),
        ('{"x": ' * 200_000 + "1" + "}" * 200_000, "column 1", "Brackets nested too deeply"),
        (f"[1, {'9' * 5000}]", "column 15", "Number too long"),
    ],
    ids=["lists", "objects", "number"],
)
def test_json_that_cannot_be_parsed_has_its_place(tmp_path, value, place, reason):
    text = f'{{"a.png": {value}}}'
    assert f"is not JSON (line 1, {place}: {reason})" in problem(read(tmp_path, text))
    lines = f'{{"image_path": "a.png", "caption": "x"}}\n{text}'
    reading = read(tmp_path, lines, name="d.jsonl")
    assert captions(reading) == {"a.png": "x"}
    (line,) = reading.findings.problems
    assert line == f"{tmp_path / 'd.jsonl'}, line 2, {place} is not JSON ({reason}); mend or remove the line"


def test_names_that_no_file_can_have(tmp_path):
    reading = read(tmp_path, '{"\\ud800.png": {"caption": "x"}, "a.png": {"caption": "y"}}')
    assert captions(reading) == {"a.png": "y"}
    assert "does not exist; correct the name, or remove the entry" in fault(reading).problem


def test_a_name_that_is_a_folder(tmp_path):
    found = fault(read(tmp_path, {"sub": {"caption": "x"}}, pictures=["sub/a.png"]))
    assert found.path == tmp_path / "images/sub"
    assert found.problem.startswith("is a folder; name each of its pictures, or make the folder a subset")


def test_jsonl_under_the_name_of_json(tmp_path):
    text = '{"image_path": "a.png"}\n{"image_path": "b.png"}'
    assert "(line 2, column 1: Extra data); with one object in each line its extension must be .jsonl" in problem(
        read(tmp_path, text)
    )


@pytest.mark.parametrize("text", ["[]", "3", '"a"'])
def test_json_of_another_kind(tmp_path, text):
    assert "must hold an object of names" in problem(read(tmp_path, text))


def test_bad_lines_are_all_listed(tmp_path):
    text = '{"image_path": "a.png", "caption": "x"}\n{"image_path": }\n[1]\n{"caption": "y"}\n{"image_path": ""}'
    reading = read(tmp_path, text, name="data.jsonl")
    assert captions(reading) == {"a.png": "x"}
    file = tmp_path / "data.jsonl"
    assert reading.findings.problems == (
        f"{file}, line 2, column 16 is not JSON (Expecting value); mend or remove the line",
        f"{file}, line 3 must be an object with image_path, got [1]",
        f"{file}, line 4 has no image_path, which names the picture",
        f"{file}, line 5 has no image_path, which names the picture",
    )


def test_lines_with_the_keys_of_other_programs_name_them_and_ours(tmp_path):
    reading = read(tmp_path, [{"file_name": "a.png", "text": "a cat"}], name="data.jsonl")
    assert problem(reading) == (
        f"{tmp_path / 'data.jsonl'}, line 1 has no image_path, which names the picture; it has file_name, text: "
        "image_path and caption are meant"
    )


def test_a_comma_behind_the_last_item_is_named(tmp_path):
    assert "(line 1, column 26: trailing comma behind the last item)" in problem(
        read(tmp_path, '{"a.png": {"caption": "x",}}')
    )
    (text,) = read(tmp_path, '{"image_path": "a.png",}', name="data.jsonl").findings.problems
    assert "line 1, column 23 is not JSON (trailing comma behind the last item)" in text


def test_entries_that_are_no_objects(tmp_path):
    reading = read(tmp_path, {"a.png": "a cat", "": {}, "b.png": {"caption": "x"}})
    file = tmp_path / "data.json"
    assert reading.findings.problems == (
        f"""{file}: entry "a.png" must be an object like {{"caption": "a cat"}}, got 'a cat'""",
        f"{file} has an entry without name; name its picture",
    )


def test_pictures_named_twice(tmp_path):
    text = '{"a.png": {"caption": "x"}, "a": {"caption": "y"}}'
    reading = read(tmp_path, text)
    assert captions(reading) == {"a.png": "x"}
    place = tmp_path / "images/a.png"
    assert reading.findings.problems == (
        f'{tmp_path / "data.json"} has {place} twice, as "a.png" and as "a"; remove one',
    )
    lines = [{"image_path": "a.png", "caption": "x"}, {"image_path": "./a.png", "caption": "y"}]
    assert 'as "a.png" and as "./a.png"' in read(tmp_path, lines, name="d.jsonl").findings.problems[0]
    assert 'as "a.png" and as "a.png"' in read(tmp_path, lines[:1] * 2, name="d.jsonl").findings.problems[0]


def test_name_repeated_in_an_object(tmp_path):
    text = '{"a.png": {"caption": "x"}, "a.png": {"caption": "y"}}'
    assert read(tmp_path, text).findings.problems == (f'{tmp_path / "data.json"} has "a.png" twice; remove one',)


@pytest.mark.parametrize(("name", "text"), [("data.json", "{}"), ("data.jsonl", "\n\n")])
def test_file_without_entries(tmp_path, name, text):
    assert problem(read(tmp_path, text, name=name)) == f"{tmp_path / name} names no pictures"


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "metadata.json").write_text("{}", encoding="utf-8")

    def problem_of(file):
        return problem(read_metadata(SubsetSpec(image_dir=tmp_path, metadata_file=Path(file))))

    missing = tmp_path / "metadat.json"
    assert problem_of(missing) == (
        f"metadata_file {missing} does not exist; the nearest name in its folder is metadata.json"
    )
    deep = tmp_path / "none" / "x.json"
    assert problem_of(deep) == f"metadata_file {deep} does not exist, and neither does its folder {deep.parent}"
    assert problem_of(tmp_path) == f"metadata_file {tmp_path} is a folder; name the file in it"
    (tmp_path / "latin.json").write_bytes(b'{"caf\xe9": {}}')
    assert "is not UTF-8 (byte 0xe9 at 5); save it again as UTF-8" in problem_of(tmp_path / "latin.json")


def test_class_tokens_for_empty_captions_have_to_exist(tmp_path):
    reading = read(tmp_path, {"a.png": {"caption": "x"}}, empty_caption="class_tokens")
    assert reading.findings.problems == (
        f'{tmp_path / "data.json"}: empty_caption = "class_tokens" needs class_tokens',
    )
