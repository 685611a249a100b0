"""The plan of a run from folders of real pictures."""

from __future__ import annotations

import json
import logging

import pytest
from PIL import Image

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.plan.captions import CaptionRules
from library.errors import DatasetError
from library.records import Size
from library.training.planning import PlanSettings, plan_data


def make_pictures(folder, *names):
    folder.mkdir()
    for name in names:
        Image.new("RGB", (64, 64), (len(name), 0, 0)).save(folder / name)
    return folder


def make_plan(tmp_path, *subsets, **settings):
    return plan_data(
        "data.toml",
        [DatasetSpec(resolution=Size(64, 64), subsets=subsets)],
        PlanSettings(max_epochs=1, **settings),
        index_dir=tmp_path / "index",
    )


def subset(folder, **keys):
    return SubsetSpec(image_dir=folder, class_tokens="x", **keys)


def test_a_plan_without_damaged_pictures_counts_again(tmp_path):
    folder = make_pictures(tmp_path / "a", "1.png", "2.png", "3.png")
    plan = make_plan(tmp_path, subset(folder, num_repeats=2), on_bad_file="skip")
    fewer = plan.without({folder / "2.png": "cannot be decoded"})
    assert (plan.steps.max_steps, fewer.steps.max_steps) == (6, 4)
    assert [record.path.name for record in fewer.records] == ["1.png", "3.png"]
    assert [str(fault) for fault in fewer.findings.faults] == [f"{folder / '2.png'} cannot be decoded"]
    fewer.refuse_faults()
    assert fewer.scan.files == plan.scan.files == {(0, 0): {folder / f"{number}.png" for number in (1, 2, 3)}}


def test_a_dropped_caption_may_be_the_empty_one(tmp_path):
    kept, dropped = make_pictures(tmp_path / "a", "1.png"), make_pictures(tmp_path / "b", "2.png")
    plan = make_plan(tmp_path, subset(kept), subset(dropped, captions=CaptionRules(caption_dropout_rate=0.1)))
    assert plan.possible_captions() == (("x",), ("x", ""))


def test_damaged_pictures_refuse_the_plan_unless_they_are_skipped(tmp_path):
    folder = make_pictures(tmp_path / "a", "1.png", "2.png")
    plan = make_plan(tmp_path, subset(folder)).without({folder / "1.png": "cannot be decoded"})
    with pytest.raises(DatasetError, match=r"1\.png cannot be decoded"):
        plan.refuse_faults()


def test_nothing_left_to_train_is_an_error_with_every_picture(tmp_path):
    folder = make_pictures(tmp_path / "a", "1.png", "2.png")
    plan = make_plan(tmp_path, subset(folder), on_bad_file="skip")
    with pytest.raises(DatasetError) as caught:
        plan.without({folder / "1.png": "is broken", folder / "2.png": "is broken"}).refuse_faults()
    assert all(words in str(caught.value) for words in ("1.png is broken", "2.png is broken", "nothing is left"))


@pytest.mark.parametrize(("both", "told"), [(True, "the network learns nothing"), (False, "without the network: 1")])
def test_preserved_output_is_told(both, told, tmp_path):
    keeps = {"custom_attributes": {"diff_output_preservation": True}}
    first = subset(make_pictures(tmp_path / "a", "1.png"), **keeps)
    second = subset(make_pictures(tmp_path / "b", "2.png"), **(keeps if both else {}))
    findings = make_plan(tmp_path, first, second).findings
    assert [line for line in (*findings.notes, *findings.remarks) if told in line]


def test_pictures_kept_for_validation_come_after_those_that_are_trained(tmp_path, caplog):
    trained, kept = make_pictures(tmp_path / "a", "1.png"), make_pictures(tmp_path / "b", "2.png", "3.png")
    plan = make_plan(tmp_path, subset(kept, validation_split=1.0), subset(trained))
    assert [record.path.name for record in plan.training_records] == ["1.png"]
    assert {record.path.name for record in plan.validation_records} == {"2.png", "3.png"}
    assert {item.record for batch in plan.epoch(1, seed=0, rank=0) for item in batch.items} == {0}
    with caplog.at_level(logging.INFO, logger="easel"):
        plan.tell()
    assert "kept for validation: 2 pictures" in caplog.text


def test_what_validation_leaves_to_train_is_told_with_one_advice(tmp_path):
    kept = subset(make_pictures(tmp_path / "a", "1.png"), validation_split=1.0)
    reg = subset(make_pictures(tmp_path / "b", "2.png"), is_reg=True)
    assert make_plan(tmp_path, kept, reg).findings.problems == (
        "validation_split keeps 1 picture for validation and leaves none to train on; lower it, or add a subset "
        "without it",
    )
    (problem,) = make_plan(tmp_path, reg).findings.problems
    assert "add a subset without is_reg" in problem


def test_a_metadata_file_that_was_prepared_for_another_size_is_told(tmp_path):
    folder, file = make_pictures(tmp_path / "a", "1.png", "2.png", "3.png"), tmp_path / "meta.json"
    entries = {"1.png": [64, 64], "2.png": [32, 96], "3.png": "another program's"}
    file.write_text(json.dumps({name: {"tags": "x", "train_resolution": size} for name, size in entries.items()}))
    (note,) = make_plan(tmp_path, subset(folder, metadata_file=file)).findings.notes
    start = "pictures trained at another size than the train_resolution of their metadata file: 1 (2.png: 32x96); "
    assert note.startswith(start)
