"""Epoch plans, dealing to processes, and the step arithmetic in words."""

from dataclasses import replace
from pathlib import Path

import pytest

from library.data.plan.batches import count_steps, epoch_plan, for_process, sample_id
from library.records import CropPlan, ImageRecord, Size

WIDE, TALL = Size(64, 32), Size(32, 64)


def make(groups):
    """Records and crops from (bucket, count, repeats, dataset)."""
    records, crops = [], []
    for number, (bucket, count, repeats, dataset) in enumerate(groups):
        for index in range(count):
            records.append(ImageRecord(Path("x"), f"{number}/{index}", "", bucket, repeats, dataset, 0))
            crops.append(CropPlan(bucket, 0, 0, bucket))
    return records, crops


def test_plan_is_a_function_of_seed_and_epoch():
    records, crops = make([(WIDE, 7, 3, 0), (TALL, 4, 1, 0)])
    plan = epoch_plan(records, crops, [2], 5, 1)
    assert plan == epoch_plan(records, crops, [2], 5, 1)
    items = [p.items for p in plan]
    assert items != [p.items for p in epoch_plan(records, crops, [2], 6, 1)]
    assert items != [p.items for p in epoch_plan(records, crops, [2], 5, 2)]
    assert {sample_id(records[item.record], item.repeat) for p in plan for item in p.items} == (
        {f"0/{i}#{r}" for i in range(7) for r in range(3)} | {f"1/{i}#0" for i in range(4)}
    )


def test_processes_and_accumulation_do_not_change_the_batches():
    records, crops = make([(WIDE, 9, 1, 0)])
    one = epoch_plan(records, crops, [1], 5, 3, num_processes=1, accumulation=2)
    two = epoch_plan(records, crops, [1], 5, 3, num_processes=2, accumulation=1)
    assert one == two  # both use two batches per optimizer step
    four = epoch_plan(records, crops, [1], 5, 3, num_processes=2, accumulation=2)
    assert [p.items for p in four] == [p.items for p in one]
    assert [p.step for p in four] == [6 + index // 4 for index in range(9)]


def test_batches_keep_datasets_apart_and_use_their_batch_size():
    records, crops = make([(WIDE, 5, 1, 0), (WIDE, 5, 1, 1)])
    plan = epoch_plan(records, crops, [2, 4], 0, 1)
    assert sorted(len(p.items) for p in plan) == [1, 1, 2, 2, 4]
    assert all(len({records[item.record].dataset for item in p.items}) == 1 for p in plan)


def test_short_processes_get_the_last_batch_with_weight_0():
    records, crops = make([(WIDE, 7, 1, 0)])
    plans = epoch_plan(records, crops, [1], 0, 2, num_processes=4, accumulation=2)
    shares = [for_process(plans, rank, 4) for rank in range(4)]
    assert [[p.index for p in share] for share in shares] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert [share[-1].weight for share in shares] == [1, 1, 1, 0]
    assert (shares[3][-1].size, shares[3][-1].items) == (WIDE, plans[-1].items)
    assert {p.step for share in shares for p in share} == {1}
    assert [share[-1].epoch for share in shares] == [2] * 4


def test_fewer_batches_than_processes():
    records, crops = make([(WIDE, 1, 1, 0)])
    plans = epoch_plan(records, crops, [1], 0, 1, num_processes=3)
    assert [[p.index for p in for_process(plans, rank, 3)] for rank in range(3)] == [[0], [1], [2]]
    assert [for_process(plans, rank, 3)[0].weight for rank in range(3)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("groups", "batch_sizes", "arguments", "line"),
    [
        (
            [(WIDE, 40, 10, 0)],
            [1],
            {"num_processes": 1, "accumulation": 4, "max_steps": 1600, "max_epochs": 10},
            "40 images x 10 repeats = 400 samples -> 400 batches of 1 / 4 accumulation x 1 process = "
            "100 steps an epoch, 10 epochs = 1000 steps",
        ),
        (
            [(WIDE, 3, 1, 0), (TALL, 2, 2, 1)],
            [2, 3],
            {"num_processes": 2, "accumulation": 1, "max_steps": 5},
            "5 images with repeats = 7 samples -> 4 batches of 2 or 3 / 1 accumulation x 2 processes = "
            "2 steps an epoch, 3 epochs (the last one cut short) = 5 steps",
        ),
        (
            [(WIDE, 1, 1, 0)],
            [1],
            {"num_processes": 1, "accumulation": 2, "max_steps": 1},
            "1 image x 1 repeat = 1 sample -> 1 batch of 1 / 2 accumulation x 1 process = "
            "1 step an epoch (rounded up), 1 epoch = 1 step",
        ),
    ],
)
def test_step_arithmetic_in_words(groups, batch_sizes, arguments, line):
    assert count_steps(*make(groups), batch_sizes, **arguments).describe() == line


def test_pictures_of_regularisation_are_counted_apart():
    records, crops = make([(WIDE, 2, 2, 0), (WIDE, 3, 1, 0)])
    records = [replace(record, is_reg=index > 1) for index, record in enumerate(records)]
    count = count_steps(records, crops, [1], num_processes=1, accumulation=1, max_steps=7)
    assert count.describe().startswith("2 images x 2 repeats + 3 regularisation images (3 samples) = 7 samples -> ")


@pytest.mark.parametrize(("num_processes", "accumulation"), [(1, 1), (1, 3), (1, 4), (2, 3), (3, 100)])
def test_step_sizes_deal_out_the_batches_of_a_process(num_processes, accumulation):
    records, crops = make([(WIDE, 9, 1, 0), (TALL, 3, 1, 0)])
    steps = count_steps(
        records, crops, [1], num_processes=num_processes, accumulation=accumulation, max_steps=1, max_epochs=None
    )
    plans = epoch_plan(records, crops, [1], 5, 1, num_processes=num_processes, accumulation=accumulation)
    for rank in range(num_processes):
        assert sum(steps.step_sizes) == len(for_process(plans, rank, num_processes))
    assert len(steps.step_sizes) == steps.steps_per_epoch
    assert max(steps.step_sizes) <= accumulation and min(steps.step_sizes) > 0


@pytest.mark.parametrize("max_epochs", [None, 3])
def test_without_pictures_there_are_no_steps(max_epochs):
    steps = count_steps([], [], [1], num_processes=2, accumulation=3, max_steps=10, max_epochs=max_epochs)
    assert (steps.batches_per_epoch, steps.steps_per_epoch, steps.epochs, steps.max_steps) == (0, 0, 0, 0)
    assert steps.step_sizes == ()
