"""Losses by timestep and by picture: the same however samples are dealt, small, exact after a resume."""

import csv
import json
import random

import pytest

from library.errors import OutputError
from library.training.watching.loss_records import LossRecords


def counted(*epochs):
    """Records of epochs given as lists of (picture, timestep, loss)."""
    records = LossRecords()
    for epoch, rows in enumerate(epochs, 1):
        records.add(epoch, rows)
        records.extend(records.take_new())
    return records


def random_rows(seed, pictures=7, count=60):
    draw = random.Random(seed)
    return [(f"p{draw.randrange(pictures)}", draw.uniform(0, 1000), draw.expovariate(3)) for _ in range(count)]


def test_a_bin_has_the_mean_of_the_run_and_of_the_last_epoch():
    records = counted([("a", 0, 1.0), ("b", 99.9, 3.0), ("a", 100, 8.0)], [("a", 50, 5.0)])
    first, second, *_ = records.timestep_bins()
    assert first == (0, 100, 3, 3.0, 1, 5.0)
    assert second == (100, 200, 1, 8.0, 0, None)


@pytest.mark.parametrize(("timestep", "number"), [(0, 0), (99.99, 0), (100, 1), (999, 9), (1000, 9)])
def test_timesteps_have_their_bin(timestep, number):
    bins = counted([("a", timestep, 1.0)]).timestep_bins()
    assert [item.num_samples for item in bins].index(1) == number
    assert len(bins) == 10 and bins[-1].end == 1000


def test_a_picture_with_hard_timesteps_is_not_hard():
    easy_times = [("easy", 50, 1.0), ("easy", 60, 1.0)]
    hard_times = [("hard_times", 950, 9.0), ("hard_times", 960, 9.0)]
    hard = [("hard", 55, 2.0), ("hard", 955, 18.0)]
    rows = {row.picture: row for row in counted(easy_times + hard_times + hard).pictures()}
    assert rows["hard_times"].loss > rows["easy"].loss
    assert rows["hard_times"].relative_loss == pytest.approx(rows["easy"].relative_loss) == pytest.approx(0.75)
    assert rows["hard"].relative_loss == pytest.approx(1.5)


def test_a_picture_has_a_row_for_each_epoch_in_order():
    records = counted([("b", 10, 2.0), ("a", 10, 4.0), ("b", 20, 4.0)], [("b", 10, 1.0)])
    shown = [(row.epoch, row.picture, row.seen, row.loss) for row in records.pictures()]
    assert shown == [(1, "a", 1, 4.0), (1, "b", 2, 3.0), (2, "b", 1, 1.0)]


def test_epochs_that_ended_stay_as_they_were():
    rows = random_rows(1)
    before = counted(rows).pictures()
    assert counted(rows, random_rows(2)).pictures()[: len(before)] == before


def test_the_mean_of_the_epoch_is_that_of_its_samples():
    assert LossRecords().epoch_mean() is None
    assert counted([("a", 5, 100.0)], [("a", 5, 1.0), ("b", 900, 2.0), ("c", 5, 6.0)]).epoch_mean() == 3.0


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_results_do_not_depend_on_how_samples_were_dealt(num_processes):
    whole, several = LossRecords(), [LossRecords() for _ in range(num_processes)]
    for epoch in (1, 2, 3):
        rows = random_rows(epoch)
        whole.add(epoch, rows)
        whole.extend(whole.take_new())
        random.Random(num_processes).shuffle(rows)
        for rank, records in enumerate(several):
            records.add(epoch, rows[rank::num_processes])
        taken = [row for records in several for row in records.take_new()]
        for records in several:
            records.extend(taken)
    for records in several:
        assert records.pictures() == whole.pictures()
        assert records.timestep_bins() == whole.timestep_bins()
        assert records.hardest(3) == whole.hardest(3)


def test_counting_several_times_an_epoch_changes_nothing():
    rows = random_rows(5)
    often = LossRecords()
    for row in rows:
        often.add(1, [row])
        often.extend(often.take_new())
    assert often.pictures() == counted(rows).pictures()


def test_rows_count_once_they_were_taken():
    records = LossRecords()
    records.add(1, [("a", 5, 1.0)])
    assert records.pictures() == []
    assert len(records.take_new()) == 1
    assert records.take_new() == []


def test_losses_that_are_no_numbers_are_left_out():
    records = counted([("a", 5, float("nan")), ("a", 5, float("inf")), ("a", 5, 2.0)])
    assert [(row.seen, row.loss) for row in records.pictures()] == [(1, 2.0)]


def test_losses_of_zero_are_as_hard_as_each_other():
    assert [row.relative_loss for row in counted([("a", 5, 0.0), ("b", 5, 0.0)]).pictures()] == [1.0, 1.0]


def test_rows_of_a_former_epoch_are_refused():
    records = counted([("a", 5, 1.0)], [("a", 5, 1.0)])
    with pytest.raises(ValueError, match="epoch 1 came after rows of epoch 2"):
        records.extend([(1, "a", 0, 1, 1 << 80)])


def test_the_hardest_are_those_of_the_last_epochs():
    epoch = [("a", 5, 9.0), ("b", 5, 1.0), ("c", 5, 1.0)]
    later = [("a", 5, 1.0), ("b", 5, 2.0), ("c", 5, 9.0)]
    records = counted(epoch, later)
    assert [item.picture for item in records.hardest(2, last_epochs=1)] == ["c", "b"]
    assert records.hardest(3, last_epochs=2)[0].picture == "a"
    assert [item.seen for item in records.hardest(9, last_epochs=2)] == [2, 2, 2]


def test_the_first_name_goes_first_among_equals():
    records = counted([("b", 5, 1.0), ("a", 5, 1.0)])
    assert [item.picture for item in records.hardest(2)] == ["a", "b"]


@pytest.mark.parametrize("cut", [0, 1, 45, 60])
def test_going_on_from_a_state_changes_nothing(cut):
    rows, unbroken, first, second = random_rows(9), LossRecords(), LossRecords(), LossRecords()
    for records in (unbroken, first):
        records.add(1, random_rows(8))
        records.extend(records.take_new())
    first.add(2, rows[:cut])
    second.load_state(json.loads(json.dumps(first.state())))
    second.add(2, rows[cut:])
    unbroken.add(2, rows)
    for records in (unbroken, second):
        records.extend(records.take_new())
        records.add(3, random_rows(3))
        records.extend(records.take_new())
    assert second.state() == unbroken.state()
    assert second.pictures() == unbroken.pictures()


def test_a_state_does_not_change_while_training_goes_on():
    records = counted(random_rows(1))
    state = records.state()
    text = json.dumps(state)
    records.add(2, random_rows(2))
    records.extend(records.take_new())
    assert json.dumps(state) == text


@pytest.mark.parametrize("part", ["new", "open", "history"])
def test_what_is_kept_does_not_grow_with_steps(part):
    def size(steps):
        records = LossRecords()
        for seed in range(steps):
            records.add(1, random_rows(seed))
        if part != "new":
            records.extend(records.take_new())
        if part == "history":
            records.extend([(2, "p0", 0, 1, 1)])
        return len(json.dumps([list(map(len, records.state()["history"].values())), len(records.state()[part])]))

    assert size(20) == size(200)


def test_the_table_has_a_row_for_each_picture_and_epoch(tmp_path):
    path = tmp_path / "loss_by_image.csv"
    counted([('日本, "é".png', 10, 0.5), ("a.png", 10, 1.5)], [("a.png", 10, 1.0)]).write_by_image(path)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", "picture", "seen", "loss", "relative_loss"]
    assert rows[1:] == [
        ["1", "a.png", "1", "1.5", "1.5000"],
        ["1", '日本, "é".png', "1", "0.5", "0.5000"],
        ["2", "a.png", "1", "1", "1.0000"],
    ]


def test_names_that_are_no_utf8_are_written(tmp_path):
    counted([("a\udcff.png", 10, 1.0)]).write_by_image(tmp_path / "t.csv")
    assert "a\\udcff.png" in (tmp_path / "t.csv").read_text(encoding="utf-8")


def test_a_table_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        counted(random_rows(1)).write_by_image(tmp_path / "file" / "loss_by_image.csv")
