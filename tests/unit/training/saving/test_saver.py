"""Which names a run saves under, and what is left after each save."""

import json
from pathlib import Path

import pytest

from library.checkpoint.state_folder import MODEL_INDEX
from library.data.plan.batches import StepCount
from library.errors import OutputError
from library.options.groups import SavingOptions
from library.training.course import Course
from library.training.saving.saver import SavePlan, Saver, average_path, is_average
from library.training.sharding.leading import LostProcessError

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[3] / "golden" / "data" / "names_hashes.json").read_text(encoding="utf-8")
)


def course(steps_per_epoch, max_steps):
    return Course(
        StepCount(
            images=steps_per_epoch,
            repeats=1,
            samples=steps_per_epoch,
            batch_sizes=(1,),
            accumulation=1,
            num_processes=1,
            batches_per_epoch=steps_per_epoch,
            batches_per_process=steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            epochs=-(-max_steps // steps_per_epoch),
            max_steps=max_steps,
        )
    )


def saver_of(folder, options, run, write_model=None):
    def write(path, step, epoch):
        path.write_text(str(step))
        return [path]

    plan = SavePlan(options, run, ".safetensors")
    return Saver(folder, plan, write_model or write, lambda path: path.mkdir(exist_ok=True))


@pytest.mark.parametrize("case", GOLDEN["retention_simulations"], ids=lambda case: f"{case['kind']} {case['every']}")
def test_what_is_left_after_each_save_is_as_users_know_it(case, tmp_path):
    kind = {"epoch": "epochs", "step": "steps"}[case["kind"]]
    options = SavingOptions(
        output_name=case["output_name"],
        **{
            f"save_every_n_{kind}": case["every"],
            f"save_last_n_{kind}": case["save_last_n"],
            f"save_last_n_{kind}_state": case["save_last_n_state"],
        },
    )
    run = course(1, case["total"]) if kind == "epochs" else course(10**6, case["total"] + 1)
    saver = saver_of(tmp_path, options, run)
    for number, listing in case["listing_after"]:
        for save in saver.plan.due(number):
            assert saver.try_to_save_model(save, number)
            assert saver.try_to_save_state(save)
        assert sorted(path.name for path in tmp_path.iterdir()) == listing


def test_all_models_are_named_before_the_first_is_written():
    options = SavingOptions(output_name="m", save_every_n_steps=2, save_every_n_epochs=1)
    assert list(SavePlan(options, course(3, 7), ".safetensors").all_models()) == [
        "m.safetensors",
        *("m-step00000002.safetensors", "m-000001.safetensors", "m-step00000004.safetensors"),
        *("m-step00000006.safetensors", "m-000002.safetensors"),
    ]


def test_the_average_of_a_file_goes_with_it(tmp_path):
    def write(path, step, epoch):
        written = [path, path.with_name(f"{path.stem}-ema{path.suffix}")]
        for file in written:
            file.write_text(str(step))
        return written

    options = SavingOptions(output_name="m", save_every_n_steps=1, save_last_n_steps=1)
    saver = saver_of(tmp_path, options, course(100, 100), write)
    for step in (1, 2, 3):
        saver.save_model(saver.plan.due(step)[0], step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("m-step00000002-ema.safetensors", "m-step00000002.safetensors"),
        *("m-step00000003-ema.safetensors", "m-step00000003.safetensors"),
    ]


def folder_saver(folder, options):
    """Saves models as folders, each with its average."""

    def write(path, step, epoch):
        written = [path, average_path(path)]
        for own in written:
            own.mkdir()
            (own / MODEL_INDEX).write_text(str(step))
        return written

    plan = SavePlan(options, course(100, 100), "", has_average=True)
    return Saver(folder, plan, write, lambda path: path.mkdir(exist_ok=True))


def test_models_that_are_folders_go_with_their_averages(tmp_path):
    saver = folder_saver(tmp_path, SavingOptions(output_name="v1.5", save_every_n_steps=1, save_last_n_steps=1))
    for step in (1, 2, 3):
        saver.save_model(saver.plan.due(step)[0], step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("v1.5-step00000002", "v1.5-step00000002-ema", "v1.5-step00000003", "v1.5-step00000003-ema"),
    ]


def test_a_folder_that_is_no_model_is_not_removed(tmp_path):
    saver = folder_saver(tmp_path, SavingOptions(output_name="m", save_every_n_steps=1, save_last_n_steps=1))
    (tmp_path / "m-step00000001").mkdir()
    (tmp_path / "m-step00000001" / "mine.txt").touch()
    saver.save_model(saver.plan.due(3)[0], 3)
    assert (tmp_path / "m-step00000001" / "mine.txt").exists()


def test_side_files_of_a_model_go_with_it_and_others_stay(tmp_path):
    def write(path, step, epoch):
        written = [path.with_name(f"{path.stem}_clip_l.safetensors"), path]
        for file in written:
            file.write_text(str(step))
        return written

    options = SavingOptions(output_name="m", save_every_n_steps=1, save_last_n_steps=1)
    plan = SavePlan(options, course(100, 100), ".ckpt", side_parts=("clip_l",))
    saver = Saver(tmp_path, plan, write, lambda path: path.mkdir())
    (tmp_path / "m-step00000001_t5xxl.safetensors").touch()  # not of this run
    for step in (1, 2, 3):
        saver.save_model(saver.plan.due(step)[0], step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m-step00000001_t5xxl.safetensors",
        *("m-step00000002.ckpt", "m-step00000002_clip_l.safetensors"),
        *("m-step00000003.ckpt", "m-step00000003_clip_l.safetensors"),
    ]


def test_side_files_and_averages_are_named_before_the_first_is_written():
    options = SavingOptions(output_name="m", save_every_n_epochs=1)
    plan = SavePlan(options, course(3, 4), ".safetensors", side_parts=("t5xxl",), has_average=True)
    assert list(plan.all_models()) == [
        *("m.safetensors", "m_t5xxl.safetensors", "m-ema.safetensors", "m-ema_t5xxl.safetensors"),
        *("m-000001.safetensors", "m-000001_t5xxl.safetensors"),
        *("m-000001-ema.safetensors", "m-000001-ema_t5xxl.safetensors"),
    ]


@pytest.mark.parametrize("name", ["m.safetensors", "v1.5", "v1.5.ckpt", "a-ema-b.pt", "last"])
def test_an_average_is_known_by_its_name(name):
    average = average_path(Path("out") / name)
    assert (is_average(average), is_average(Path(name))) == (True, False)
    assert (average.parent, len(average.name)) == (Path("out"), len(name) + len("-ema"))


def test_a_state_that_the_run_may_go_back_to_stays(tmp_path):
    options = SavingOptions(output_name="m", save_every_n_steps=1, save_last_n_steps=1)
    saver = saver_of(tmp_path, options, course(100, 100))
    saver.spared = tmp_path / "m-step00000001-state"
    for step in (1, 2, 3, 4):
        saver.try_to_save_state(saver.plan.due(step)[0])
    left = [path.name for path in sorted(tmp_path.iterdir())]
    assert left == ["m-step00000001-state", "m-step00000003-state", "m-step00000004-state"]


def test_a_process_that_cannot_go_on_ends_the_run_where_something_is_saved(tmp_path):
    def write(*_):
        raise LostProcessError("out of memory. Go on from the last state.")

    plan = SavePlan(SavingOptions(output_name="m", save_every_n_steps=1), course(100, 100), ".safetensors")
    saver = Saver(tmp_path, plan, write, write)
    (save,) = plan.due(1)
    with pytest.raises(LostProcessError):
        saver.try_to_save_model(save, 1)
    with pytest.raises(LostProcessError):
        saver.try_to_save_state(save)


def test_a_file_that_fails_in_between_is_told_and_the_next_one_is_saved(tmp_path, caplog):
    def write(path, step, epoch):
        if step == 1:
            raise OutputError(f"{path}: cannot be written (full). Free some space.")
        path.write_text(str(step))
        return [path]

    options = SavingOptions(output_name="m", save_every_n_steps=1)
    saver = saver_of(tmp_path, options, course(100, 100), write)
    assert [saver.try_to_save_model(saver.plan.due(step)[0], step) for step in (1, 2)] == [False, True]
    assert [file.name for file in saver.files] == ["m-step00000002.safetensors"]


def test_a_kill_between_a_save_and_the_removal_of_the_older_one_is_made_good(tmp_path):
    options = SavingOptions(output_name="m", save_every_n_steps=1, save_last_n_steps=1)
    saver = saver_of(tmp_path, options, course(100, 100))
    for step in (1, 2, 3):
        (tmp_path / f"m-step0000000{step}-state").mkdir()
        (tmp_path / f"m-step0000000{step}.safetensors").touch()
    saver.tidy(3)
    assert not list(tmp_path.glob("m-step00000001*")) and len(list(tmp_path.iterdir())) == 4
