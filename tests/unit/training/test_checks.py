"""Checks at the start of a run."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import Any

import pytest
import torch

from library.data.plan.batches import StepCount
from library.errors import OutputError
from library.options.groups import SavingOptions
from library.training.checks import check_free_space, check_output_dir, check_writable
from library.training.course import Course
from library.training.saving.saver import SavePlan

KB = 1000
Usage = namedtuple("Usage", ("total", "used", "free"))


def test_folders_that_would_be_made_are_fine_and_not_made(tmp_path):
    check_writable([tmp_path / "new" / "deeper"], "Choose another")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_named_with_the_advice(tmp_path):
    (tmp_path / "file").write_text("x")
    folder = tmp_path / "file" / "caches"
    with pytest.raises(OutputError) as caught:
        check_writable([tmp_path, folder], "Choose another --cache_dir")
    assert str(caught.value) == f"{folder}: files cannot be written there. Choose another --cache_dir."


def test_seeing_whether_a_folder_can_be_written_leaves_nothing_in_it(tmp_path):
    check_output_dir(tmp_path / "new" / "deeper")
    assert list((tmp_path / "new" / "deeper").iterdir()) == []


# Room for the saves of a run of 8 steps, 4 an epoch. A model file takes 100 kB, a state 300 kB.


def saves(**options: Any) -> SavePlan:
    counts = dict.fromkeys(("images", "repeats", "samples", "accumulation", "num_processes"), 1)
    counts |= dict.fromkeys(("batches_per_epoch", "batches_per_process", "steps_per_epoch"), 4)
    course = Course(StepCount(**counts, batch_sizes=(1,), epochs=2, max_steps=8))
    return SavePlan(SavingOptions(output_name="mine", **options), course, ".safetensors")


@pytest.fixture
def told(tmp_path, monkeypatch, caplog):
    """told(free, plan) is the warning with this many bytes free, or ""."""

    def check(free: int, plan: SavePlan, **more: Any) -> str:
        caplog.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, (1 << 40) - free, free))
        check_free_space(tmp_path, plan, [torch.zeros(15 * KB), torch.zeros(10, KB)], **more)
        return caplog.text

    return check


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, 100),
        ({"save_every_n_steps": 2}, 500),
        ({"save_every_n_epochs": 1}, 200),
        ({"save_every_n_steps": 1, "save_every_n_epochs": 1}, 1000),
        ({"save_every_n_steps": 2, "save_precision": "fp16"}, 250),
        ({"save_every_n_steps": 2, "save_state": True}, 2000),
        ({"save_every_n_steps": 2, "save_state_on_train_end": True}, 800),
        ({"save_every_n_steps": 1, "save_last_n_steps": 1}, 300),
        ({"save_every_n_steps": 1, "save_last_n_steps": 1, "save_state": True}, 1200),
        ({"save_every_n_steps": 1, "save_last_n_steps_state": 1, "save_state": True}, 1800),
    ],
)
def test_a_run_needs_room_for_the_files_that_are_kept_at_once(options, needed, told):
    assert told(needed * KB, saves(**options)) == ""
    if needed > 400:  # what is below one save is an error
        assert "all saves of this run take about" in told(needed * KB - 1, saves(**options))


def test_averages_are_saved_too(told):
    plan = saves(save_every_n_steps=2)
    assert told(1000 * KB, plan, num_averages=1) == "" != told(1000 * KB - 1, plan, num_averages=1)


def test_a_whole_model_has_more_in_it_than_what_trains(told):
    plan = saves(save_every_n_steps=2, save_state=True)  # of the model 500 kB, as it will be written; of a state 300 kB
    assert told(4000 * KB, plan, model_bytes=500 * KB) == "" != told(4000 * KB - 1, plan, model_bytes=500 * KB)
    plan = saves(save_every_n_steps=2)
    assert told(5000 * KB, plan, model_bytes=500 * KB, num_averages=1) == ""


def test_what_is_there_already_takes_no_more_room(tmp_path, told):
    plan = saves(save_every_n_steps=2)
    for step in (2, 4):
        (tmp_path / plan.of_step(step).model).touch()
    assert told(300 * KB, plan, first_step=4) == "" != told(300 * KB - 1, plan, first_step=4)
    assert told(300 * KB, plan) == ""  # a run that overwrites them


@pytest.mark.parametrize(("options", "one"), [({}, 100), ({"save_state": True}, 400), ({"save_precision": "bf16"}, 50)])
def test_room_for_not_even_one_save_is_an_error(options, one, told, tmp_path):
    told(one * KB, saves(**options))
    with pytest.raises(OutputError) as caught:
        told(one * KB - 1, saves(**options))
    assert str(caught.value) == (
        f"--output_dir: {tmp_path} has {one} kB free, and one save takes about {one} kB. "
        "Free some space, or choose another folder."
    )
