"""The closing lines of a run."""

from pathlib import Path

import pytest

from library.training.watching.loss_records import HardPicture
from library.training.watching.summary import RunSummary, SavedFile, WrittenFile, best_save, duration, summary_lines

OUT = Path("out")


def saved(*steps):
    return [SavedFile(OUT / f"x-{step}.safetensors", step) for step in steps]


def lines(**facts):
    values = {"steps": 400, "max_steps": 400, "epochs": 4, "max_epochs": 4, "seconds": 200.0, **facts}
    return summary_lines(RunSummary(**values))


def test_a_run_without_anything_to_tell_is_two_lines():
    assert lines() == ["done: 400 steps, 4 epochs, 3 min 20 s (0.50 s a step)", "nothing was saved"]


def test_a_run_that_was_stopped_says_so():
    assert lines(steps=1, epochs=0, max_epochs=1, max_steps=1200)[0] == (
        "stopped: 1 of 1,200 steps, 0 of 1 epoch, 3 min 20 s (200.00 s a step)"
    )


def test_a_run_that_went_on_tells_the_time_of_its_own_steps():
    assert lines(first_step=300)[0].endswith("3 min 20 s since step 300 (2.00 s a step)")
    assert lines(first_step=400)[0].endswith("3 min 20 s since step 400")


def test_an_epoch_that_was_cut_short_is_not_called_one():
    told = lines(steps=4, mean_loss=1.47684, averaged_steps=4, is_epoch_cut=True)
    assert told[1] == "mean loss of the last 4 steps, as the last epoch was cut short: 1.4768"


def test_everything_is_told_in_order():
    told = lines(
        mean_loss=0.12345,
        skipped_steps=3,
        saved=saved(200, 400),
        validation=[(200, 0.1234), (400, 0.2)],
        hardest=[HardPicture("a.png", 1.5, 4), HardPicture("b.png", 1.25, 4)],
        uploads=["uploaded x to owner/name"],
        sample_problems=["prompt 2 could not be drawn"],
        written=[WrittenFile("curves", OUT / "curves.png")],
        peak_memory="9.1 of 23.7 GiB",
    )
    assert told[1:] == [
        "mean loss of the last epoch: 0.1235",
        "skipped steps, whose loss or gradient was not finite: 3",
        f"lowest validation loss 0.1234 at step 200: {OUT / 'x-200.safetensors'}",
        "hardest pictures, by loss against the mean of the same timesteps: a.png (1.50), b.png (1.25)",
        "prompt 2 could not be drawn",
        "uploaded x to owner/name",
        f"curves: {OUT / 'curves.png'}",
        "saved before it: 1 file (x-200.safetensors)",
        f"saved: {OUT / 'x-400.safetensors'}",
        "most memory in use: 9.1 of 23.7 GiB",
    ]


def test_a_lower_validation_without_a_file_is_told():
    told = lines(saved=saved(200, 400), validation=[(100, 0.1), (200, 0.3), (400, 0.2)])
    assert f"lowest validation loss 0.2000 at step 400: {OUT / 'x-400.safetensors'}" in told
    assert "validation was lower at step 100, 0.1000, where nothing was saved or is left" in told


def test_a_file_between_validations_is_judged_by_the_nearest_one():
    told = lines(saved=saved(250), validation=[(100, 0.1), (300, 0.3)])
    path = OUT / "x-250.safetensors"
    assert f"lowest validation loss near a saved file 0.3000 at step 300: {path} (step 250)" in told


@pytest.mark.parametrize(("files", "validation"), [([], [(1, 0.5)]), (saved(1), []), ([], [])])
def test_there_is_no_best_file_without_files_or_validations(files, validation):
    assert best_save(files, validation) is None


def test_the_first_of_equal_files_is_the_best():
    files = [*saved(10, 20), SavedFile(OUT / "x.safetensors", 20)]
    assert best_save(files, [(10, 0.2), (20, 0.2)]).file == files[0]
    assert best_save(files, [(10, 0.3), (20, 0.2)]).file == files[1]


def test_of_files_judged_by_one_validation_the_nearest_is_the_best():
    assert best_save(saved(10, 30, 50), [(28, 0.2)]).file.step == 30


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (3599.9, "1 h 0 min"), (7620, "2 h 7 min")],
)
def test_durations_are_told_in_two_units(seconds, words):
    assert duration(seconds) == words
