"""Failure catalogue, section B: captions and metadata files. Each row has a test that starts with its number.

What is refused ends with exit code 2 and one error that names every bad file and a way out, before weights are read,
and no file is touched. Of what is read, the text that reaches the training loop is looked at.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bad_corpus
import pytest
from bad_corpus import BAD_CAPTIONS, BAD_METADATA, LONG, ODD_CAPTIONS, TEXT, write, write_captioned

UNET_ONLY = "--network_train_unet_only"
TEXTS = "--cache_text_encoder_outputs_to_disk"
EPOCH = "--max_train_epochs=1"
SKIP = "--on_bad_file=skip"
GOOD = {"good1.txt": b"a good one", "good2.txt": b"another good one"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def captioned(training: Any, *names: str, to: str = "pictures") -> Path:
    """A folder with two good pictures with captions, and a picture for each of these captions of the corpus."""
    texts = {**BAD_CAPTIONS, **ODD_CAPTIONS}
    folder: Path = training.folder / to
    write_captioned(folder, {**GOOD, **{name: texts[name] for name in names}})
    return folder


def captions_of(run: Any) -> dict[str, str]:
    """{picture: the text that the loop got}."""
    records = run.trainer.plan.records
    return {
        records[item.record].path.stem: caption
        for batch in run.batches
        for item, caption in zip(batch.plan.items, batch.captions, strict=True)
    }


def logged(run: Any, text: str) -> str:
    """The one line of the log that holds a text."""
    (line,) = {line for line in run.log if text in line}
    return line


GOOD_TEXTS = {Path(name).stem: content.decode() for name, content in GOOD.items()}


def assert_refused(ended: Any, folder: Path, before: dict[str, bytes], *, num_problems: int, words: list[str]) -> None:
    assert ended.code == 2 and not ended.has_read_weights, ended.shown
    assert f"{num_problems} problems" in ended.error or num_problems == 1, ended.error
    assert [word for word in words if word not in ended.error] == [], ended.error
    assert contents(folder) == before


# B1


def test_b1_all_empty_captions_are_named(training, refused):
    folder = captioned(training, "empty.txt", "blank.txt")
    before = contents(folder)
    ended = refused(training.dataset(folder), EPOCH)
    words = [f"{folder / name} has no text" for name in ("empty.txt", "blank.txt")]
    assert_refused(ended, folder, before, num_problems=2, words=[*words, "write a caption", 'empty_caption = "allow"'])


def test_b1_the_rest_trains_with_skip(training):
    folder = captioned(training, "empty.txt", "blank.txt")
    before = contents(folder)
    run = training.run(training.dataset(folder, num_repeats=3), EPOCH, SKIP)
    assert captions_of(run) == GOOD_TEXTS
    assert run.seen == sorted(["good1.png", "good2.png"] * 3) and len(run.losses) == 3
    assert "2 pictures cannot be used" in logged(run, "as --on_bad_file says")
    assert contents(folder) == before


@pytest.mark.parametrize(("policy", "text"), [("allow", ""), ("class_tokens", "sks dog")])
def test_b1_empty_captions_by_policy(policy, text, training):
    folder = captioned(training, "empty.txt", "blank.txt")
    run = training.run(training.dataset(folder, empty_caption=policy, class_tokens="sks dog"), EPOCH)
    assert captions_of(run) == {**GOOD_TEXTS, "empty": text, "blank": text}
    assert ": 2 (" in logged(run, "caption files without text")


# B2 to B5: texts


def test_b2_blank_lines_at_the_start_are_no_caption(training):
    run = training.run(training.dataset(captioned(training, "blank_first.txt", "crlf.txt")), EPOCH)
    assert captions_of(run) == {**GOOD_TEXTS, "blank_first": TEXT, "crlf": TEXT}


def test_b3_of_several_lines_the_first_is_used_and_that_is_told(training):
    folder = captioned(training, "several_lines.txt")
    run = training.run(training.dataset(folder), EPOCH)
    assert captions_of(run)["several_lines"] == TEXT
    told = logged(run, "several lines")
    assert ": 1 (several_lines.txt)" in told and "enable_wildcard" in told
    wild = training.run(training.dataset(folder, num_repeats=20, enable_wildcard=True), EPOCH)
    seen = {caption for batch in wild.batches for caption in batch.captions} - set(GOOD_TEXTS.values())
    assert seen == {TEXT, "second line", "third line"}
    assert not any("several lines" in line for line in wild.log)


def test_b4_captions_in_other_encodings_are_all_named(training, refused):
    folder = captioned(training, "latin1.txt", "utf16_without_mark.txt", "utf16.txt")
    before = contents(folder)
    ended = refused(training.dataset(folder), EPOCH)
    words = [str(folder / name) for name in ("latin1.txt", "utf16_without_mark.txt")]
    words += ["is not UTF-8 (byte 0xe9 at 5)", "save it again as UTF-8", 'caption_encoding = "cp1252"']
    assert_refused(ended, folder, before, num_problems=2, words=words)
    run = training.run(training.dataset(folder), EPOCH, SKIP)
    assert captions_of(run) == {**GOOD_TEXTS, "utf16": TEXT}


def test_b4_declared_and_marked_encodings_are_read(training):
    folder = captioned(training, "latin1.txt", "utf16.txt", "utf16_be.txt")
    run = training.run(training.dataset(folder, caption_encoding="cp1252"), EPOCH)
    assert captions_of(run) == {**GOOD_TEXTS, "latin1": TEXT, "utf16": TEXT, "utf16_be": TEXT}
    assert ": 1 (latin1.txt)" in logged(run, "CP1252") and ": 2 (" in logged(run, "UTF-16")


def test_b5_a_byte_order_mark_is_no_part_of_the_caption(training):
    run = training.run(training.dataset(captioned(training, "bom.txt")), EPOCH)
    assert captions_of(run) == {**GOOD_TEXTS, "bom": TEXT}


# B6, B7, B9: files


def test_b6_all_pictures_without_caption_are_named(training, refused):
    folder = captioned(training, "bom.txt", "crlf.txt")
    for name in ("bom.txt", "crlf.txt"):
        (folder / name).unlink()
    before = contents(folder)
    ended = refused(training.dataset(folder), EPOCH)
    words = [f"{folder / name} has no caption file" for name in ("bom.png", "crlf.png")]
    words += ["class_tokens", 'missing_caption = "allow"']
    assert_refused(ended, folder, before, num_problems=2, words=words)
    run = training.run(training.dataset(folder), EPOCH, SKIP)
    assert captions_of(run) == GOOD_TEXTS
    assert "2 pictures cannot be used" in logged(run, "as --on_bad_file says")


@pytest.mark.parametrize(
    ("keys", "text"), [({"missing_caption": "allow"}, ""), ({"class_tokens": "sks dog"}, "sks dog")]
)
def test_b6_pictures_without_caption_by_policy(keys, text, training):
    folder = captioned(training, "bom.txt")
    (folder / "bom.txt").unlink()
    run = training.run(training.dataset(folder, **keys), EPOCH)
    assert captions_of(run) == {**GOOD_TEXTS, "bom": text}
    assert any("empty caption: 1 (bom.png)" in line for line in run.log) == (text == "")


def test_b6_a_folder_in_the_place_of_a_caption_is_named(training, refused):
    bad_corpus.write_folders(training.folder / "folders")
    folder = training.folder / "folders" / "caption_is_a_folder"
    ended = refused(training.dataset(folder), EPOCH)
    words = [f"{folder / 'a.txt'} is a folder", "rename it"]
    assert_refused(ended, folder, contents(folder), num_problems=1, words=words)


def test_b7_captions_under_another_extension_are_hinted_at(training, refused):
    folder = captioned(training)
    dataset = training.dataset(folder, caption_extension=".caption")
    words = [f"{folder} has no .caption files but .txt files", 'caption_extension = ".txt"']
    for flags in ((), (SKIP,)):
        assert_refused(refused(dataset, EPOCH, *flags), folder, contents(folder), num_problems=1, words=words)
    run = training.run(training.dataset(folder, caption_extension=".caption", class_tokens="sks dog"), EPOCH)
    assert set(captions_of(run).values()) == {"sks dog"}
    assert "class_tokens are used instead" in logged(run, "has no .caption files but .txt files")


def test_b8_captions_beyond_the_limit_are_counted_per_encoder(training, refused):
    ended = refused(
        training.dataset(captioned(training, "long.txt")), EPOCH, "--dry_run", "--t5xxl_max_token_length=256"
    )
    assert ended.code == 0 and not ended.has_read_weights, ended.shown
    for encoder, limit in (("clip_l", 77), ("clip_g", 77), ("t5xxl", 256)):
        (line,) = re.findall(rf"^ *{encoder} .*$", ended.printed, re.MULTILINE)
        _, reads, _, longest, num_cut, name = line.split()
        assert (int(reads), int(num_cut), name) == (limit, 1, "long.png") and int(longest) > 600 == len(
            LONG.split(", ")
        )


def test_b9_parts_of_names_are_not_taken_for_face_positions(training, refused):
    folder = training.folder / "a_1_2_3_4"
    write_captioned(folder, {"face_10_20_30_40.txt": b"its own", "face.txt": b"of the other"})
    assert captions_of(training.run(training.dataset(folder), EPOCH)) == {
        "face_10_20_30_40": "its own",
        "face": "of the other",
    }
    (folder / "face_10_20_30_40.txt").unlink()
    ended = refused(training.dataset(folder), EPOCH)
    assert ended.code == 2 and f"{folder / 'face_10_20_30_40.png'} has no caption file" in ended.error


# B10, B11: caches of captions


def test_b10_an_edited_caption_is_encoded_anew(training):
    folder = captioned(training)
    dataset = training.dataset(folder)
    training.run(dataset, EPOCH, UNET_ONLY, TEXTS)
    (folder / "good1.txt").write_text("edited afterwards", encoding="utf-8")
    run = training.run(dataset, EPOCH, UNET_ONLY, TEXTS)
    assert "making 1 of 2" in logged(run, "text: ")
    assert captions_of(run)["good1"] == "edited afterwards"
    assert run.losses == pytest.approx(training.run(dataset, EPOCH, UNET_ONLY).losses, rel=1e-4)


@pytest.mark.parametrize(
    "flags", [["--mixed_precision=bf16"], ["--t5xxl_max_token_length=24"], ["--apply_t5_attn_mask"]], ids=lambda f: f[0]
)
def test_b10_text_states_of_other_settings_are_made_anew(flags, training):
    dataset = training.dataset(captioned(training))
    training.run(dataset, EPOCH, UNET_ONLY, TEXTS, *flags)
    run = training.run(dataset, EPOCH, UNET_ONLY, TEXTS)
    assert "making 2 of 2 (2 new)" in logged(run, "text: ")
    assert run.losses == pytest.approx(training.run(dataset, EPOCH, UNET_ONLY).losses, rel=1e-4)


def test_b11_text_states_with_nan_are_not_trained_on(training, refused):
    folder = captioned(training)
    dataset = training.dataset(folder)
    first = training.run(dataset, EPOCH, UNET_ONLY, TEXTS)
    for entry in folder.rglob("*_te.safetensors"):
        entry.write_bytes(bad_corpus.CACHE_DAMAGE["nan"](entry.read_bytes()))
    codes = [refused(dataset, EPOCH, UNET_ONLY, TEXTS, model=training.model).code for _ in range(3)]
    assert codes[-1] == 0  # what is damaged is told when it is read, and made again by the next start
    run = training.run(dataset, EPOCH, UNET_ONLY, TEXTS)
    assert "all 2 are cached" in logged(run, "text encoder")
    assert run.losses == pytest.approx(first.losses, rel=1e-5)


# B12: metadata files

METADATA_FAULTS = {
    "comma.json": (1, ["line 3, column 30: trailing comma"]),
    "line.jsonl": (1, ["line 2, column"]),
    "list.json": (1, [".jsonl"]),
    "types.json": (2, ["caption must be a text, got 3", "must be an object"]),
    "gone.json": (2, ["gone.png does not exist", "away.png does not exist"]),
    "empty.json": (1, ["names no pictures"]),
    "zero.json": (1, []),
    "latin1.json": (1, ["save it again as UTF-8"]),
}


@pytest.mark.parametrize("name", METADATA_FAULTS)
def test_b12_faults_of_metadata_files_are_named_with_their_place(name, training, refused):
    folder = training.folder / "pictures"
    write_captioned(folder, {"1.txt": b"one", "2.txt": b"two"})
    write(folder, name)
    before = contents(folder)
    num_problems, words = METADATA_FAULTS[name]
    ended = refused(training.dataset(folder, metadata_file=str(folder / name)), EPOCH)
    assert_refused(ended, folder, before, num_problems=num_problems, words=[str(folder / name), *words])


def test_b12_a_missing_metadata_file_is_named_with_the_nearest(training, refused):
    folder = training.folder / "pictures"
    write_captioned(folder, {"1.txt": b"one"})
    write(folder, "gone.json")
    ended = refused(training.dataset(folder, metadata_file=str(folder / "gonne.json")), EPOCH)
    words = [f"{folder / 'gonne.json'} does not exist", "gone.json"]
    assert_refused(ended, folder, contents(folder), num_problems=1, words=words)


def test_b12_with_skip_the_entries_that_are_right_train(training):
    folder = training.folder / "pictures"
    write_captioned(folder, {"1.txt": b"one", "2.txt": b"two"})
    write(folder, "gone.json")
    run = training.run(training.dataset(folder, metadata_file=str(folder / "gone.json")), EPOCH, SKIP)
    assert captions_of(run) == {"1": "one"}
    assert "2 pictures cannot be used" in logged(run, "as --on_bad_file says")


def test_b12_good_metadata_in_another_encoding_is_read(training):
    folder = training.folder / "pictures"
    write_captioned(folder, {"1.txt": b"unused"})
    table = json.dumps({"1.png": {"caption": TEXT}}, ensure_ascii=False)
    (folder / "marked.json").write_bytes(b"\xef\xbb\xbf" + table.encode())
    run = training.run(training.dataset(folder, metadata_file=str(folder / "marked.json")), EPOCH)
    assert captions_of(run) == {"1": TEXT}


def test_every_row_has_a_test():
    assert {f"b{number}" for number in range(1, 13)} <= {
        name.split("_")[1] for name in globals() if name[:6] == "test_b"
    }
    assert set(METADATA_FAULTS) == set(BAD_METADATA)
