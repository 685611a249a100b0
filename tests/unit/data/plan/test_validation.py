"""Which pictures are kept for validation, and that none is in both."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.plan.validation import split_validation
from library.records import ImageRecord, Size


def dataset(*splits, seed=None, folder="x"):
    subsets = tuple(SubsetSpec(image_dir=Path(folder), validation_split=split) for split in splits)
    return DatasetSpec(resolution=Size(64, 64), validation_seed=seed, subsets=subsets)


def records(number, folder="x", *, dataset=0, subset=0, **options):
    return [
        ImageRecord(
            Path(folder) / f"{i}.png", f"{dataset}.{subset}/{i}", "", Size(64, 64), 3, dataset, subset, **options
        )
        for i in range(number)
    ]


def names(found):
    return {record.path.name for record in found}


def test_nothing_is_kept_without_a_split():
    given = records(20)
    split = split_validation(given, [dataset(0.0)])
    assert (split.training, split.validation) == (tuple(given), ())
    assert split.findings == type(split.findings)()


def test_about_the_share_is_kept_once_each():
    split = split_validation(records(2000), [dataset(0.1)])
    assert 150 < len(split.validation) < 250
    assert len(split.training) + len(split.validation) == 2000
    assert {record.repeats for record in split.validation} == {1}
    assert {record.repeats for record in split.training} == {3}


def test_the_choice_is_always_the_same():
    kept = names(split_validation(records(40), [dataset(0.2)]).validation)
    assert kept == {"4.png", "6.png", "25.png", "30.png", "31.png", "32.png"}


def test_a_seed_chooses_others_and_none_is_seed_0():
    chosen = [names(split_validation(records(200), [dataset(0.2, seed=seed)]).validation) for seed in (None, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_larger_share_keeps_what_a_smaller_one_does():
    small, large = (names(split_validation(records(200), [dataset(share)]).validation) for share in (0.1, 0.3))
    assert small < large


def test_the_folder_does_not_matter():
    here, there = (
        split_validation(records(200, f"{folder}/deep"), [dataset(0.2, folder=folder)]).validation
        for folder in ("a", "b/c")
    )
    assert names(here) == names(there)


def test_equal_names_in_sub_folders_are_drawn_apart():
    given = [replace(records(1, f"x/s{number}")[0], key=str(number)) for number in range(200)]
    split = split_validation(given, [dataset(0.2)])
    assert 20 < len(split.validation) < 60


def test_pictures_outside_of_the_folder_go_by_their_last_two_names():
    given = [replace(record, path=Path("/far/s0") / record.path.name) for record in records(100)]
    spec = dataset(0.3)
    kept = names(split_validation(given, [spec]).validation)
    assert kept == names(split_validation(records(100, "x/s0"), [spec]).validation)
    rootless = replace(spec, subsets=(replace(spec.subsets[0], image_dir=None),))
    assert kept == names(split_validation(given, [rootless]).validation)


def test_accents_may_be_stored_either_way():
    both = [
        [replace(record, path=Path(f"x/{letter}{record.path.name}")) for record in records(100)]
        for letter in ("\u00e9", "e\u0301")
    ]
    kept = [{r.key for r in split_validation(given, [dataset(0.5)]).validation} for given in both]
    assert kept[0] == kept[1]


def test_a_whole_subset():
    given = records(5) + records(7, "y", subset=1)
    split = split_validation(given, [dataset(0.0, 1.0)])
    assert split.training == tuple(given[:5])
    assert len(split.validation) == 7


def test_regularisation_is_never_kept():
    given = records(5) + records(7, "y", subset=1, is_reg=True)
    assert split_validation(given, [dataset(0.0, 1.0)]).training == tuple(given)


def test_a_file_kept_in_one_dataset_is_trained_on_in_none(tmp_path):
    for i in range(50):
        (tmp_path / f"{i}.png").write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "link")
    given = records(50, tmp_path) + records(50, tmp_path / "link", dataset=1) + records(50, tmp_path / ".", dataset=2)
    specs = [dataset(0.3, folder=tmp_path), dataset(0.1, seed=7, folder=tmp_path / "link"), dataset(0.0)]
    split = split_validation(given, specs)
    kept = names(split.validation)
    assert names(record for record in split.validation if record.dataset == 1) - names(
        record for record in split.validation if record.dataset == 0
    )
    assert not kept & names(split.training)
    assert {record.dataset for record in split.validation} == {0, 1}
    assert len(split.training) == 3 * (50 - len(kept))


def test_one_picture_is_counted_in_the_singular():
    (problem,) = split_validation(records(1), [dataset(1.0)]).findings.problems
    assert "keeps 1 picture for validation" in problem
    (note,) = split_validation(records(1), [dataset(0.0001)]).findings.notes
    assert "keeps none of 1 picture; raise" in note


def test_nothing_left_to_train_is_a_problem():
    split = split_validation(records(4), [dataset(1.0)])
    assert split.findings.problems == (
        "validation_split keeps 4 pictures for validation and leaves none to train on; "
        "lower it, or add a subset without it",
    )
    only_reg = records(4) + records(2, "y", subset=1, is_reg=True)
    assert len(split_validation(only_reg, [dataset(1.0, 0.0)]).findings.problems) == 1
    assert split_validation([], [dataset(1.0)]).findings.problems == ()


@pytest.mark.parametrize("share", [0.05, 0.0001])
def test_a_share_that_keeps_none_is_said(share):
    split = split_validation(records(3) + records(3, "y", subset=1), [dataset(0.0, share)])
    assert split.validation == ()
    assert split.findings.notes == (
        f"dataset 1, subset 2: validation_split {share:g} keeps none of 3 pictures; raise it, or try another "
        "validation_seed",
    )
