"""tools/check_dataset.py as it is used: on a folder, on a dataset file, with --fix, and what it writes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bad_corpus
import pytest
import toml
from PIL import Image

from examples.tiny_sd3.tokenizers import write_tokenizers
from library.data.files.fixing import FOLDER
from library.data.report.checkup_text import JSON_VERSION
from tools.check_dataset import main

SMALL = ("--resolution=64", "--bucket_reso_steps=32")


class Told(NamedTuple):
    """What a user sees, and the findings by code."""

    code: int
    out: str
    log: str
    findings: dict[str, dict[str, Any]]
    numbers: dict[str, Any]

    def files(self, code: str) -> list[list[str]]:
        """Names of the files of each case of a finding."""
        cases = self.findings[code]["cases"] if code in self.findings else []
        return [[Path(file).name for file in case["files"]] for case in cases]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """check(folder, *flags) runs the tool on small pictures."""

    def run(*arguments: object, code: int | None = None) -> Told:
        capsys.readouterr()
        file = tmp_path / "findings.json"
        file.unlink(missing_ok=True)
        found = main([*map(str, arguments), *SMALL, f"--json={file}"])
        out, log = capsys.readouterr()
        numbers = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"findings": []}
        told = Told(found, out, log, {each["code"]: each for each in numbers["findings"]}, numbers)
        assert code is None or found == code, out + log
        return told

    return run


def dataset(tmp_path: Path, folder: Path, **keys: Any) -> Path:
    file = tmp_path / "dataset.toml"
    general = {
        "resolution": 64,
        "enable_bucket": True,
        "bucket_reso_steps": 32,
        "min_bucket_reso": 32,
        "max_bucket_reso": 128,
    }
    subset = {"image_dir": str(folder), "caption_extension": ".txt", **keys}
    file.write_text(toml.dumps({"general": general, "datasets": [{"subsets": [subset]}]}), encoding="utf-8")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_in_order_is_ready(check, tiny_pictures):
    before = contents(tiny_pictures)
    told = check(tiny_pictures, code=0)
    assert told.out.rstrip().endswith(": ready to train.")
    assert told.numbers["version"] == JSON_VERSION
    assert (told.numbers["pictures"], told.numbers["errors"], told.numbers["warnings"]) == (12, 0, 0)
    assert contents(tiny_pictures) == before


def test_every_broken_picture_is_named_with_or_without_caption(check, tiny_pictures):
    names = [name for name in bad_corpus.BAD_PICTURES if name != "lying.png"]  # which some versions of Pillow read
    bad_corpus.write(tiny_pictures, *names)
    (tiny_pictures / "broken_inside.txt").write_text("a caption")
    told = check(tiny_pictures, code=2)
    assert sorted(file for (file,) in told.files("broken-picture")) == sorted(names)
    assert "missing-caption" not in told.findings


@pytest.mark.parametrize(
    ("caption", "code"),
    [(None, "missing-caption"), (b"  \n", "empty-caption"), ("é".encode("latin-1"), "encoding")],
)
def test_a_caption_that_cannot_be_used_is_an_error_and_its_picture_is_looked_at(check, tiny_pictures, caption, code):
    shutil.copy(tiny_pictures / "red_star.png", tiny_pictures / "z.png")
    if caption is not None:
        (tiny_pictures / "z.txt").write_bytes(caption)
    told = check(tiny_pictures, code=2)
    assert [Path(file).stem for (file,) in told.files(code)] == ["z"]
    if code != "encoding":
        assert told.files("exact-duplicate") == [["z.png", "red_star.png"]]
    assert told.out.rstrip().splitlines()[-1].startswith("1 error, ")


def test_pictures_that_share_a_caption_file_and_folders_of_captions_are_errors(check, tiny_pictures):
    shutil.copy(tiny_pictures / "red_star.png", tiny_pictures / "green_circle.png")
    (tiny_pictures / "red_square.txt").unlink()
    (tiny_pictures / "red_square.txt").mkdir()
    told = check(tiny_pictures, code=2)
    assert told.files("shared-caption") == [["green_circle.jpg"], ["green_circle.png"]]
    assert told.files("unusable-file") == [["red_square.txt"]]


def test_copies_are_found_whatever_their_size_and_quality(check, tiny_pictures):
    image = Image.open(tiny_pictures / "white_star.jpg").convert("RGB")
    image.resize((image.width // 2, image.height // 2)).save(tiny_pictures / "smaller.png")
    shutil.copy(tiny_pictures / "red_star.png", tiny_pictures / "same.png")
    for name in ("smaller", "same"):
        (tiny_pictures / f"{name}.txt").write_text(f"a {name} one")
    told = check(tiny_pictures, code=0)
    assert told.files("near-duplicate") == [["smaller.png", "white_star.jpg"]]
    assert told.files("exact-duplicate") == [["same.png", "red_star.png"]]
    assert told.findings["exact-duplicate"]["cases"][0]["detail"] == "with different captions"
    assert not told.findings["exact-duplicate"]["cases"][0]["fix"]
    assert told.files("tiny-picture") == []
    assert check(tiny_pictures, "--strict").code == 2


def test_a_copy_of_a_picture_that_is_kept_for_validation_is_a_leak(check, tiny_pictures, tmp_path):
    file = dataset(tmp_path, tiny_pictures, validation_split=0.3)
    told = check(f"--dataset_config={file}", code=0)
    assert "leak" not in told.findings
    kept = told.numbers["validation_pictures"]
    assert 0 < kept < 12
    for path in sorted(tiny_pictures.glob("*.png")):  # names say which side a copy falls on
        Image.open(path).convert("RGB").save(path.with_name(f"{path.stem}_b.jpg"), quality=95)
        shutil.copy(path.with_suffix(".txt"), path.with_name(f"{path.stem}_b.txt"))
    told = check(f"--dataset_config={file}", code=0)
    leaks = told.findings["leak"]["cases"]
    assert 0 < len(leaks) < len(told.findings["near-duplicate"]["cases"])
    for case in leaks:
        own = {Path(path).name for path in case["files"]}
        named = set(case["detail"].removeprefix("kept for validation: ").split(", "))
        assert len(own) == 2 and len(named) == 1 and named < own


def test_shapes_and_sizes_are_told(check, tiny_pictures):
    for name, size in {"tiny": (16, 16), "small": (40, 40), "long": (900, 64)}.items():
        Image.effect_noise(size, 90).convert("RGB").save(tiny_pictures / f"{name}.png")
        (tiny_pictures / f"{name}.txt").write_text(f"a {name} picture")
    told = check(tiny_pictures, code=0)
    assert told.files("tiny-picture") == [["tiny.png"]]
    assert told.files("upscaled") == [["small.png"]]
    assert told.files("extreme-shape") == [["long.png"]]
    assert "plan-warning" not in told.findings  # which would tell them again


def test_captions_are_compared_with_each_other_and_the_trigger_word(check, tiny_pictures):
    for name in ("red_star", "red_square", "red_circle"):
        (tiny_pictures / f"{name}.txt").write_text("Zorp, something red")
    (tiny_pictures / "white_star.txt").write_text("zorps")
    told = check(tiny_pictures, "--trigger_word=zorp", code=0)
    assert told.files("duplicate-caption") == [["red_circle.png", "red_square.png", "red_star.png"]]
    assert len(told.files("trigger-word")) == 9 and ["white_star.jpg"] in told.files("trigger-word")


def test_fix_mends_what_is_safe_once_and_leaves_the_rest(check, tiny_pictures):
    bad_corpus.write(tiny_pictures, "zero.png")
    (tiny_pictures / "zero.txt").write_text("nothing")
    (tiny_pictures / "gone_star.txt").write_text("a caption of no picture")
    (tiny_pictures / "red_star.txt").rename(tiny_pictures / "red_star.TXT")
    copies = ("white_star (1).jpg", "white_star (1).txt")
    for name in copies:
        shutil.copy(tiny_pictures / f"white_star{Path(name).suffix}", tiny_pictures / name)
    (tiny_pictures / "red_square.txt").write_bytes("ein rotes Quadrat".encode("utf-16"))
    (tiny_pictures / "empty.png").write_bytes((tiny_pictures / "green_circle.jpg").read_bytes())
    before = contents(tiny_pictures)
    told = check(tiny_pictures, code=2)
    assert contents(tiny_pictures) == before
    assert re.search(r"--fix would mend 5 of these\.$", told.out.rstrip())

    told = check(tiny_pictures, "--fix", code=2)  # the picture without caption is left to a person
    assert [each["action"] for each in told.numbers["mended"]].count("set aside") == 5
    assert told.findings.keys() & {"broken-picture", "orphan-caption", "caption-ending", "marked-encoding"} == set()
    assert told.files("missing-caption") == [["empty.png"]]
    assert (tiny_pictures / "red_star.txt").is_file()
    assert (tiny_pictures / "red_square.txt").read_text(encoding="utf-8") == "ein rotes Quadrat"
    aside = {name.removeprefix(f"{FOLDER}/") for name in contents(tiny_pictures) if name.startswith(FOLDER)}
    assert aside == {"zero.png", "zero.txt", "gone_star.txt", *copies, "red_square.txt", "fixed.jsonl"}

    after = contents(tiny_pictures)
    assert set(before.values()) <= set(after.values())  # nothing is lost
    told = check(tiny_pictures, "--fix", code=2)
    assert told.numbers["mended"] == [] and contents(tiny_pictures) == after


def test_what_a_metadata_file_names_stays_where_it_is(check, tiny_pictures, tmp_path):
    bad_corpus.write(tiny_pictures, "zero.png")
    shutil.copy(tiny_pictures / "red_star.png", tiny_pictures / "same.png")
    entries = {name: {"caption": "a star"} for name in ("red_star.png", "same.png", "zero.png")}
    (tmp_path / "m.json").write_text(json.dumps(entries))
    told = check(f"--in_json={tmp_path / 'm.json'}", f"--train_data_dir={tiny_pictures}", "--fix", code=2)
    assert told.files("exact-duplicate") == [["same.png", "red_star.png"]]
    assert told.files("broken-picture") == [["zero.png"]]
    assert told.numbers["mended"] == []


def test_the_options_of_a_training_decide_what_is_an_error(check, tiny_pictures, tmp_path):
    bad_corpus.write(tiny_pictures, "zero.png")
    file = dataset(tmp_path, tiny_pictures, class_tokens="a shape")
    assert check(f"--dataset_config={file}", code=2).findings["broken-picture"]["severity"] == "error"
    told = check(f"--dataset_config={file}", "--on_bad_file=skip", code=0)
    assert told.findings["broken-picture"]["severity"] == "warning"


def test_a_second_check_decodes_nothing(check, tiny_pictures, monkeypatch):
    first = check(tiny_pictures, code=0)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert check(tiny_pictures, code=0).out == first.out


def test_masks_without_picture_and_black_masks_are_told(check, tiny_pictures, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in [*tiny_pictures.glob("*.png"), *tiny_pictures.glob("*.jpg"), Path("nobody.png")]:
        size = Image.open(path).size if path.is_absolute() else (64, 64)
        Image.new("L", size, 0 if path.stem == "red_star" else 255).save(masks / f"{path.stem}.png")
    file = dataset(tmp_path, tiny_pictures, conditioning_data_dir=str(masks))
    told = check(f"--dataset_config={file}", "--masked_loss", code=0)
    assert told.files("orphan-mask") == [["nobody.png"]]
    assert told.files("black-mask") == [["red_star.png"]]


def test_a_missing_mask_and_a_picture_beyond_the_limit_are_errors(check, tiny_pictures, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (*tiny_pictures.glob("*.png"), *tiny_pictures.glob("*.jpg")):
        Image.new("L", Image.open(path).size, 255).save(masks / f"{path.stem}.png")
    (masks / "red_star.png").unlink()
    file = dataset(tmp_path, tiny_pictures, conditioning_data_dir=str(masks), max_image_pixels=64 * 64)
    told = check(f"--dataset_config={file}", "--masked_loss", code=2)
    assert told.files("mask") == [["red_star.png"]]
    assert 0 < len(told.files("too-large")) < 12
    assert not told.findings.keys() & {"unusable-file", "broken-picture"}


def test_folders_in_the_folder_are_read_and_their_names_count(check, tiny_pictures, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tiny_pictures, root / "one")
    told = check(root, code=0)
    assert told.numbers["pictures"] == 12
    (root / "one").rename(root / "3_shape")
    (root / "3_shape" / "red_star.txt").unlink()  # the words of the folder's name are its caption
    told = check(root, code=0)
    assert told.numbers["pictures"] == 12 and told.numbers["source"] == str(root)


def test_json_goes_to_stdout_in_place_of_the_text(tiny_pictures, capsys):
    assert main([str(tiny_pictures), *SMALL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "One of FOLDER, --dataset_config"),
        (("pictures", "--train_data_dir=other"), "both name pictures"),
        (("pictures", "--trigger_word= "), "--trigger_word has only blanks"),
        (("pictures", "--duplicate_distance=64"), "--duplicate_distance"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, said, capsys):
    assert main([*arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--output"])
def test_places_that_cannot_be_written_are_refused_before_pictures_are_read(option, tmp_path, capsys):
    assert main([str(tmp_path), f"{option}={tmp_path / 'missing' / 'file'}"]) == 5
    assert option in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_an_error_with_its_neighbour(check, tmp_path):
    (tmp_path / "pictures").mkdir()
    told = check(tmp_path / "picture", code=2)
    assert f"FOLDER {tmp_path / 'picture'} does not exist; the nearest folder that does is" in told.log
    assert str(tmp_path / "pictures") in told.log


def test_the_page_has_the_findings_on_top_and_captions_that_are_cut(check, tiny_pictures, tmp_path):
    shutil.copy(tiny_pictures / "red_star.png", tiny_pictures / "b&w.png")
    (tiny_pictures / "b&w.txt").write_text(", ".join(["a red star"] * 40))
    write_tokenizers(tmp_path / "tokenizers")
    page = tmp_path / "page.html"
    told = check(tiny_pictures, f"--tokenizer_dir={tmp_path / 'tokenizers'}", f"--output={page}", code=0)
    assert told.files("caption-cut") == [["b&w.png"]]
    assert "clip_l reads 77 of 161 tokens" in told.findings["caption-cut"]["cases"][0]["detail"]
    html = page.read_text(encoding="utf-8")
    assert html.count("<article") == 13
    assert html.index("<code>exact-duplicate</code>") < html.index("<article")
    assert html.count('<img class="alike"') == 2 and "b&amp;w.png" in html and "b&w.png" not in html
