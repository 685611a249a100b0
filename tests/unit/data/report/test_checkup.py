"""The findings of the doctor in words, as JSON and as HTML; and duplicates that must not be moved."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.fixing import Mended, Remedy
from library.data.findings import Fault, FaultKind, Findings
from library.data.report.caption_diagnoses import missing_trigger, repeated_captions
from library.data.report.checkup_text import checkup_json, describe_checkup, summary
from library.data.report.diagnosis import Case, Checkup, Diagnosis, sorted_diagnoses
from library.data.report.duplicate_diagnoses import duplicate_diagnoses, joined_groups
from library.data.report.page.findings_panel import findings_panel
from library.data.report.plan_diagnoses import crop_diagnoses, findings_diagnoses
from library.data.report.report_text import NUM_NAMES
from library.errors import UnreadableError
from library.records import CropPlan, ImageRecord, Size


def checkup(*diagnoses):
    return Checkup("my.toml", "64x64", 5, 0, sorted_diagnoses(diagnoses))


def diagnosis(severity="warning", number=1, *, code="orphan-caption", remedies=()):
    cases = tuple(Case((Path(f"{code} {index}.txt"),), "", remedies) for index in range(number))
    return Diagnosis(severity, code, "captions without picture", "Find their pictures", cases)


def record(path, *, caption="a dog", subset=0, mask=None, is_reg=False):
    return ImageRecord(path, path.name, caption, Size(64, 64), 1, 0, subset, mask=mask, is_reg=is_reg)


def test_findings_come_by_weight_and_those_without_cases_do_not_come():
    empty = diagnosis(number=0, code="empty")
    found = checkup(diagnosis("note", code="n"), diagnosis("error", code="e"), empty, diagnosis(code="w"))
    assert [each.code for each in found.diagnoses] == ["e", "w", "n"]
    lines = describe_checkup(found)
    assert [line for line in lines if line.endswith("S: 1")] == ["ERRORS: 1", "WARNINGS: 1", "NOTES: 1"]


@pytest.mark.parametrize(
    ("severity", "verdict"),
    [("error", "would stop"), ("warning", "look at the warnings"), ("note", "ready to train")],
)
def test_the_last_line_says_what_to_do(severity, verdict):
    assert verdict in summary(checkup(diagnosis(severity)))
    remedy = (Remedy("set aside", Path("a.txt")),)
    mendable = checkup(diagnosis(severity, 3, remedies=remedy))
    assert summary(mendable).endswith("; --fix would mend 3 of these.")
    assert "--fix" not in summary(mendable, is_fixed=True)


def test_the_text_lists_some_and_json_lists_all():
    number = NUM_NAMES + 4
    found = checkup(diagnosis(number=number), Diagnosis("warning", "x", "many files", "", (Case((Path("p"),) * 50),)))
    lines = describe_checkup(found)
    assert sum(".txt" in line for line in lines) == NUM_NAMES
    assert "      and 4 more; --json and --output list all" in lines
    assert any("and 44 more" in line for line in lines)
    content = json.loads(checkup_json(found, [Mended("renamed", Path("a.TXT"), Path("a.txt"))]))
    assert [len(each["cases"]) for each in content["findings"]] == [number, 1]
    assert len(content["findings"][1]["cases"][0]["files"]) == 50
    assert content["mended"] == [{"action": "renamed", "file": "a.TXT", "now": "a.txt"}]


def test_what_people_wrote_is_escaped_on_the_page():
    nasty = Diagnosis("error", "setup", "<b>", "<i>", (Case((Path("<u>.png"),), "<script>"),))
    html = findings_panel(checkup(nasty), [])
    assert not any(tag in html for tag in ("<b>", "<i>", "<u>", "<script>"))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({}, ""),
        ({"caption": "another dog"}, "with different captions"),
        ({"subset": 1}, "in several subsets"),
        ({"mask": Path("mask.png")}, "with masks"),
    ],
)
def test_equal_files_are_moved_only_where_nothing_else_differs(tmp_path, second, reason):
    for name in ("a.png", "b.png", "a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"the same")
    records = [record(tmp_path / "a.png"), record(tmp_path / "b.png", **second)]
    found = duplicate_diagnoses(records, {}, num_training=2, distance=4, caption_endings=[".txt"])
    (case,) = next(found).cases
    assert case.detail == reason
    moved = [] if reason else [tmp_path / "b.png", tmp_path / "b.txt"]
    assert [remedy.path for remedy in case.remedies] == moved


def test_a_copy_goes_only_where_all_its_subsets_have_the_other_one(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"the same")
    used = [("a.png", 0), ("b.png", 0), ("b.png", 1)]
    found = []
    for records in ([*used, ("a.png", 1)], used):
        own = [record(tmp_path / name, subset=subset) for name, subset in records]
        (case,) = next(duplicate_diagnoses(own, {}, num_training=4, distance=4, caption_endings=[])).cases
        found.append((case.detail, [remedy.path.name for remedy in case.remedies]))
    assert found == [("", ["b.png"]), ("in several subsets", [])]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["cat (1).png", "cat.png"], "cat.png"),
        (["dog - Copy.png", "dog.png", "x.png"], "dog.png"),
        (["Copy of bird.png", "bird.png"], "bird.png"),
        (["long_name.png", "short.png"], "short.png"),
        (["a.png", "b.png"], "b.png"),  # the oldest
    ],
)
def test_of_equal_files_the_original_stays(tmp_path, names, kept):
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(b"the same")
        (tmp_path / name).with_suffix(".json").write_text(name)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    records = [record(tmp_path / name) for name in names]
    (case,) = next(duplicate_diagnoses(records, {}, num_training=len(names), distance=4, caption_endings=[])).cases
    others = [name for name in names if name != kept]
    assert case.paths == tuple(tmp_path / name for name in [kept, *others])
    moved = {path for name in others for path in (tmp_path / name, (tmp_path / name).with_suffix(".json"))}
    assert {remedy.path for remedy in case.remedies} == moved


def test_buckets_are_not_advised_where_they_are_on(tmp_path):
    crop = CropPlan(Size(100, 40), 30, 0, Size(40, 40))
    advice = []
    for is_on in (True, False):
        spec = DatasetSpec(subsets=(), resolution=Size(40, 40), enable_bucket=is_on)
        found = crop_diagnoses([record(tmp_path / "a.png")], [crop], [spec], num_training=1)
        advice += [each.advice for each in found if each.code == "extreme-shape"]
    assert advice == ["Cut them by hand", "Cut them by hand, or give --enable_bucket"]


def test_groups_with_a_common_member_are_joined():
    assert joined_groups([[0, 1], [2, 3], [4, 5], [3, 1]]) == [[0, 1, 2, 3], [4, 5]]


def test_ten_thousand_groups_in_a_chain_are_one():
    (group,) = joined_groups([number, number + 1] for number in range(10_000))
    assert group == list(range(10_001))


def test_only_what_is_known_to_be_broken_can_be_moved(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    for kind in get_args(FaultKind)[:8]:  # the others are no faults
        findings = Findings(faults=(Fault(path, "cannot be decoded, has no mask, has no text", kind=kind),))
        (found,) = (each for each in findings_diagnoses(findings, is_strict=True, caption_endings=[]) if each.cases)
        assert bool(found.cases[0].remedies) == (kind == "broken") == (found.code == "broken-picture")


def test_of_several_datasets_the_worst_counts():
    specs = [DatasetSpec(resolution=Size(side, side), subsets=()) for side in (256, 64)]
    crops = [CropPlan(Size(side, side), 0, 0, Size(side, side)) for side in (256, 64)]
    for order in (1, -1):
        records = [replace(record(Path("a.png")), dataset=number) for number in (0, 1)][::order]
        found = {each.code: each for each in crop_diagnoses(records, crops[::order], specs, num_training=0)}
        assert [str(case) for case in found["tiny-picture"].cases] == [
            "a.png: 64x64, enlarged 4.0 times to 256x256 in dataset 1"
        ]


def test_one_picture_under_two_names_is_no_duplicate(tmp_path):
    (tmp_path / "a.png").write_bytes(b"content")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    records = [record(tmp_path / "a.png"), record(tmp_path / "b.png"), record(tmp_path / "a.png", subset=1)]
    found = duplicate_diagnoses(records, {}, num_training=3, distance=4, caption_endings=[])
    assert not any(each.cases for each in found)


def test_a_picture_that_is_gone_while_it_is_compared_is_told(tmp_path):
    with pytest.raises(UnreadableError, match=r"gone\.png cannot be read any more"):
        list(duplicate_diagnoses([record(tmp_path / "gone.png")], {}, num_training=1, distance=4, caption_endings=[]))


def test_class_tokens_may_repeat_and_files_may_not():
    subsets = (SubsetSpec(image_dir=Path("a"), class_tokens="a dog"), SubsetSpec(image_dir=Path("b")))
    specs = [DatasetSpec(resolution=Size(64, 64), subsets=subsets)]
    records = [record(Path(f"{index}.png"), subset=index % 2) for index in range(6)]
    (case,) = repeated_captions(records, specs).cases
    assert [path.name for path in case.paths] == ["1.png", "3.png", "5.png"]


def test_the_trigger_word_is_a_word_and_regularisation_goes_without():
    texts = [("a Zorp, red",), ("zorpish",), ("(zorp:1.2)",), ("a dog",), ("",), ("no", "a zorp")]
    records = [record(Path(f"{index}.png"), is_reg=index == 3) for index in range(len(texts))]
    cases = missing_trigger(records, texts, "zorp", num_training=len(texts)).cases
    assert [case.paths[0].name for case in cases] == ["1.png"]
