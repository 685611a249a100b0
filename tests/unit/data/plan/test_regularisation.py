"""Balancing regularisation pictures beyond the golden values: weights, order, several datasets, notes."""

from pathlib import Path

from library.data.plan.regularisation import balance_regularisation
from library.records import ImageRecord, Size


def records(*groups):
    """Records of (name, number, repeats, is_reg, dataset)."""
    return [
        ImageRecord(Path(f"{name}{i}.png"), f"{name}{i}", "", Size(64, 64), repeats, dataset, 0, is_reg=is_reg)
        for name, number, repeats, is_reg, dataset in groups
        for i in range(number)
    ]


def repeats(balance):
    return {record.key: record.repeats for record in balance.records}


def test_nothing_changes_without_regularisation():
    given = records(("a", 3, 2, False, 0))
    balance = balance_regularisation(given, weight=0.5)
    assert balance.records == tuple(given)
    (note,) = balance.findings.notes
    assert note.startswith("--prior_loss_weight 0.5 has no effect: ")
    assert balance_regularisation(given, weight=1).findings.notes == ()


def test_weight_is_that_of_regularisation_pictures_only():
    balance = balance_regularisation(records(("r", 2, 1, True, 0), ("a", 2, 1, False, 0)), weight=0.3)
    assert [(r.key, r.loss_weight) for r in balance.records] == [("r0", 0.3), ("r1", 0.3), ("a0", 1.0), ("a1", 1.0)]


def test_repeats_are_raised_in_turn():
    balance = balance_regularisation(records(("a", 5, 10, False, 0), ("r", 7, 2, True, 0)), weight=1)
    assert [r.repeats for r in balance.records if r.is_reg] == [8, 7, 7, 7, 7, 7, 7]
    assert balance.findings.notes == ()


def test_pictures_beyond_the_need_are_not_used_and_said():
    balance = balance_regularisation(records(("a", 2, 2, False, 0), ("r", 5, 3, True, 0)), weight=1)
    assert repeats(balance) == {"a0": 2, "a1": 2, "r0": 3, "r1": 3}
    assert balance.findings.notes == (
        "dataset 1: regularisation pictures that are not used, as there are fewer training pictures: "
        "3 of 5 (r2.png, r3.png, r4.png)",
    )


def test_datasets_are_balanced_by_themselves():
    given = records(("a", 4, 1, False, 0), ("r", 1, 1, True, 0), ("b", 1, 1, False, 1), ("s", 2, 1, True, 1))
    balance = balance_regularisation(given, weight=1)
    assert repeats(balance) == {**{f"a{i}": 1 for i in range(4)}, "r0": 4, "b0": 1, "s0": 1}
    assert len(balance.findings.notes) == 1 and balance.findings.notes[0].startswith("dataset 2: ")


def test_regularisation_alone_is_a_problem():
    balance = balance_regularisation(records(("r", 2, 1, True, 0), ("a", 1, 1, False, 1)), weight=1)
    assert repeats(balance) == {"a0": 1}
    assert balance.findings.problems == (
        "dataset 1 has regularisation pictures (2) but no training pictures that can be used; "
        "add a subset without is_reg",
    )
