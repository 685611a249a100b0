"""What goes wrong while a run runs: section F of the failure catalogue, each test named after its row."""

import dataclasses
import json
import math
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sd3_train_network
from library.checkpoint.state_folder import open_folder
from library.errors import CheckpointError, DivergedError, EnvironmentFault, OptionError, OutputError
from library.memory_use import host_memory_note, spill_warning
from library.training.saving.run_state import find_state
from library.training.stepping.batch_loss import BatchLoss

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
NAME = "--output_name=x"

# Rows that other files test, with a test of each.
ELSEWHERE = {
    "F4": ("end_to_end/test_interrupted_runs.py", "test_first_signal_finishes_the_step_saves_model_and_state"),
    "F5": ("end_to_end/test_killed_runs.py", "test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes"),
    "F7": ("unit/checkpoint/test_state_folder.py", "test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_state"),
    "F12": ("unit/training/test_course.py", "test_steps_use_every_batch_of_every_epoch_once"),
    "F13": ("property/test_data_plans.py", "test_adding_a_picture_moves_no_other"),
    "F14": ("unit/training/saving/test_run_metadata.py", "test_half_a_million_tags_make_a_readable_header"),
    "F15": ("end_to_end/test_resumed_runs.py", "test_a_hub_that_is_never_reached_costs_nothing_but_the_copies"),
    "F17": (
        "unit/training/watching/test_trackers.py",
        "test_wandb_out_of_reach_runs_offline_and_keeps_the_key_to_itself",
    ),
    "F18": ("end_to_end/test_batches_workers_processes.py", "test_fault_of_one_process_ends_both"),
    "F19": ("end_to_end/test_batches_workers_processes.py", "test_two_processes_train_what_one_trains"),
    "F24": ("end_to_end/test_soak.py", "test_memory_does_not_grow_over_saves_and_samples"),
}


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


@pytest.fixture
def snapshots(monkeypatch):
    """The trained weights after each step."""
    taken = []

    def after_step(self):
        taken.append(torch.cat([p.detach().float().reshape(-1).clone() for p in self.trained_parameters()]))

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "after_step", after_step)
    return taken


def poison(monkeypatch, is_bad):
    """Batches whose latents are NaN: those for which is_bad(trainer, number of the batch) holds."""
    real = sd3_train_network.Sd3NetworkTrainer.batches_from

    def batches_from(self, step):
        for number, batch in enumerate(real(self, step), start=step + 1):
            bad = is_bad(self, number)
            yield dataclasses.replace(batch, latents=torch.full_like(batch.latents, torch.nan)) if bad else batch

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "batches_from", batches_from)


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Adafactor"])
def test_f1_a_step_that_is_not_finite_changes_nothing_and_its_pictures_are_named(
    training, dataset, snapshots, monkeypatch, optimizer
):
    poison(monkeypatch, lambda trainer, number: number == 2)
    run = training.unet_only(dataset, "--max_train_steps=4", f"--optimizer_type={optimizer}")
    assert [math.isnan(loss) for loss in run.losses] == [False, True, False, False]
    assert torch.equal(snapshots[0], snapshots[1]) and not torch.equal(snapshots[1], snapshots[2])
    (line,) = [line for line in run.log if line.startswith("step 2 was skipped: the loss is not finite")]
    names = {run.trainer.plan.records[item.record].path for item in run.batches[1].plan.items}
    assert all(f"{name} at timestep " in line for name in names)
    assert any("skipped steps" in line and "1" in line for line in run.log)


def test_f1_a_gradient_that_is_not_finite_is_seen_although_the_loss_is(training, dataset, snapshots, monkeypatch):
    from library.training.sharding import unsharded

    calls, real = [], unsharded.shared_gradients

    def shared_gradients(parameters):
        gradients = real(parameters)
        calls.append(1)
        if len(calls) == 2:
            gradients[0].view(-1)[0] = torch.inf
        return gradients

    monkeypatch.setattr(unsharded, "shared_gradients", shared_gradients)
    run = training.unet_only(dataset, "--max_train_steps=3", "--max_grad_norm=0")
    assert torch.equal(snapshots[0], snapshots[1]) and torch.isfinite(snapshots[2]).all()
    assert any(line.startswith("step 2 was skipped: the gradient is not finite") for line in run.log)


def test_f1_a_skipped_step_is_as_if_only_the_schedule_had_gone_on(training, dataset, snapshots, monkeypatch):
    """Adam's averages are those of the steps that counted."""
    from library.training.optimization.optimizer_state import optimizer_state

    poison(monkeypatch, lambda trainer, number: number == 3)
    run = training.unet_only(dataset, "--max_train_steps=3")
    bad = optimizer_state(run.trainer.optimizer)
    good = optimizer_state(training.unet_only(dataset, "--max_train_steps=2", "--max_train_steps=2").trainer.optimizer)
    for name, tensor in good["tensors"].items() if isinstance(good["tensors"], dict) else enumerate(good["tensors"]):
        assert torch.equal(tensor, bad["tensors"][name])


def test_f1_too_many_bad_steps_end_the_run_with_4_and_keep_what_was_saved(training, dataset, monkeypatch):
    poison(monkeypatch, lambda trainer, number: number > 2)
    flags = ("--max_train_steps=20", "--save_every_n_steps=2", NAME, "--max_bad_steps=3")
    with pytest.raises(DivergedError, match="3 steps in a row up to step 5 were not finite") as end:
        training.unet_only(dataset, *flags)
    assert end.value.exit_code == 4 and "--learning_rate" in str(end.value)
    assert (training.folder / "out1" / "x-step00000002.safetensors").exists()


def test_f1_the_run_goes_back_to_its_last_state_once_and_takes_other_noise(training, dataset, monkeypatch):
    poison(monkeypatch, lambda trainer, number: number > 3 and trainer.continuation.attempt == 0)
    flags = ("--max_train_steps=8", "--save_every_n_steps=2", "--save_state", NAME, "--max_bad_steps=3")
    run = training.unet_only(dataset, *flags)
    assert any(
        re.search(r"going back to .*x-step0000000\d-state \(step \d\), with other noise", line) for line in run.log
    )
    assert len(run.losses) == 8 and all(math.isfinite(loss) for loss in run.losses[4:])
    assert run.file.name == "x.safetensors"


def test_f1_going_back_over_an_epoch_leaves_no_trace_of_the_way_back(training, dataset, monkeypatch):
    """Two steps an epoch; the good state lies two epochs back, the next step is under way when it is noticed."""
    is_first = lambda trainer, number: number > 4 and trainer.continuation.attempt == 0  # noqa: E731
    flags = ("--max_train_steps=12", "--save_every_n_steps=3", "--save_state", NAME, "--max_bad_steps=4")
    with monkeypatch.context() as patch:
        poison(patch, is_first)
        run = training.unet_only(dataset, *flags)
    assert [line for line in run.log if "going back to" in line and "(step 3)" in line]
    assert len(run.losses) == 12 and all(math.isfinite(loss) for loss in run.losses)
    assert run.trainer.loop.num_skipped >= 4  # what was passed over is not forgotten
    folder = run.file.parent
    attempts = {
        path.name: json.loads((path / "train_state.json").read_text())["attempt"] for path in folder.glob("*-state")
    }
    assert attempts.pop("x-step00000003-state") == 0 and set(attempts.values()) == {1}


def test_f1_auto_takes_the_newest_state_not_the_one_with_most_steps(training, dataset):
    """As after a run that went back, or one that replaced a longer one."""
    longer = training.unet_only(dataset, "--max_train_steps=4", "--save_every_n_steps=2", "--save_state", NAME)
    folder = longer.file.parent
    for state in ("x-state", "x-step00000002-state"):
        shutil.rmtree(folder / state)
    flags = ("--max_train_steps=4", "--save_every_n_steps=1", "--save_state", NAME, f"--output_dir={folder}")
    with pytest.raises(EnvironmentFault):
        run_out_of_memory_in_step(training, dataset, 3, *flags, "--overwrite")
    assert find_state("auto", folder, "x").about["current_step"] == 2


def test_f1_a_run_that_diverges_again_after_going_back_ends_with_4(training, dataset, monkeypatch):
    poison(monkeypatch, lambda trainer, number: number > 3)
    flags = ("--max_train_steps=9", "--save_every_n_steps=1", "--save_state", NAME, "--max_bad_steps=2")
    with pytest.raises(DivergedError, match="The last good state is .*x-step00000003-state"):
        training.unet_only(dataset, *flags)


def test_f1_weights_that_are_not_finite_are_never_saved(training, dataset, monkeypatch):
    def after_step(self):
        if self.step == 2:
            next(iter(self.trained_parameters())).data.view(-1)[0] = torch.nan

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "after_step", after_step)
    flags = ("--max_train_steps=30", "--save_every_n_steps=1", NAME, "--max_bad_steps=3")
    with pytest.raises(DivergedError):
        training.unet_only(dataset, *flags)
    names = sorted(path.name for path in training.folder.glob("out1/*.safetensors"))
    assert names == ["x-step00000001.safetensors", "x-step00000002.safetensors"]


def run_out_of_memory_in_step(training, dataset, step, *flags):
    with pytest.MonkeyPatch.context() as patch:
        place = (step + 1) // 2, (step + 1) % 2  # two steps an epoch
        out_of_memory(patch, lambda batch: (batch.plan.epoch, batch.plan.index) == place)
        return training.unet_only(dataset, *flags)


def out_of_memory(monkeypatch, is_too_large):
    """Fails as CUDA does, in the middle of a step: some gradients are there already."""
    real = BatchLoss.__call__

    def call(self, batch):
        losses = real(self, batch)
        if is_too_large(batch):
            losses.losses.mean().backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return losses

    monkeypatch.setattr(BatchLoss, "__call__", call)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_f2_a_batch_that_does_not_fit_is_split_with_the_same_result(training, monkeypatch, accumulation):
    dataset = training.dataset(training.pictures(), batch_size=4)
    flags = (*CACHED, "--max_train_steps=3", f"--gradient_accumulation_steps={accumulation}")
    whole = training.compare(dataset, *flags)
    out_of_memory(monkeypatch, lambda batch: len(batch.sample_ids) > 1)
    parts = training.compare(dataset, *flags)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, tensor in parts.weights.items():
        torch.testing.assert_close(tensor, whole.weights[name], rtol=1e-3, atol=1e-6)
    told = [line for line in parts.log if line.startswith("out of memory with 4 pictures at 64x64")]
    assert [re.search(r"split in (\d)", line)[1] for line in told] == ["2", "4"]


def test_f2_a_single_picture_that_does_not_fit_ends_with_3_after_model_and_state_are_saved(
    training, dataset, monkeypatch
):
    unbroken = training.unet_only(dataset, "--max_train_steps=4")
    with monkeypatch.context() as patch:
        out_of_memory(patch, lambda batch: (batch.plan.epoch, batch.plan.index) == (2, 0))
        with pytest.raises(EnvironmentFault, match="out of memory with a single picture at 64x64") as end:
            training.unet_only(dataset, "--max_train_steps=4", NAME)
    assert end.value.exit_code == 3 and "--gradient_checkpointing" in str(end.value)
    folder = training.folder / "out2"
    assert (folder / "x-step00000002.safetensors").exists()
    assert open_folder(folder / "x-step00000002-state").about["current_step"] == 2
    state = f"--resume={folder / 'x-step00000002-state'}"
    goes_on = training.unet_only(dataset, "--max_train_steps=4", state)  # such batches stay split
    for name, tensor in goes_on.weights.items():
        torch.testing.assert_close(tensor, unbroken.weights[name], rtol=1e-3, atol=1e-5)


def test_f2_history_is_complete_in_the_state_that_is_saved_before_giving_up(training, dataset):
    with pytest.raises(EnvironmentFault):
        run_out_of_memory_in_step(training, dataset, 4, "--max_train_steps=6", NAME)
    progress = json.loads((training.folder / "out1" / "x-step00000003-state" / "train_state.json").read_text())
    assert progress["current_step"] == 3 and len(progress["losses"]) == 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_f2_no_memory_for_the_optimizer_ends_with_3_after_what_was_trained_is_saved(
    training, dataset, monkeypatch, error
):
    from library.training.sharding import unsharded

    calls, real = [], unsharded.average_over_processes

    def average(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        real(*arguments)

    monkeypatch.setattr(unsharded, "average_over_processes", average)
    with pytest.raises(EnvironmentFault, match="out of memory after step 2") as end:
        with_worker = ("--cache_latents_to_disk", "--max_data_loader_n_workers=1")
        training.unet_only(dataset, "--max_train_steps=4", *with_worker, NAME)
    assert end.tb and not multiprocessing.active_children()  # which Python would wait for when it ends
    assert open_folder(training.folder / "out1" / "x-step00000002-state").about["current_step"] == 2


def test_f2_validation_that_does_not_fit_is_split_or_left_out(training, monkeypatch):
    dataset = training.dataset(training.pictures(), validation_split=0.5, validation_seed=1)
    plain = training.unet_only(dataset, "--max_train_steps=2")
    real, limit = BatchLoss.at, [1]

    def at(self, batch, timestep, seed):
        if len(batch.sample_ids) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, timestep, seed)

    monkeypatch.setattr(BatchLoss, "at", at)
    split = training.unet_only(dataset, "--max_train_steps=2")
    assert [loss for _, loss in split.trainer.watch.validations] == pytest.approx(
        [loss for _, loss in plain.trainer.watch.validations], rel=1e-5
    )
    limit[0] = 0
    left_out = training.unet_only(dataset, "--max_train_steps=2")
    assert left_out.trainer.watch.validations == [] and left_out.file.read_bytes() == plain.file.read_bytes()
    assert [line for line in left_out.log if line.startswith("no validation loss at step 2, training goes on: ")]


def test_f2_the_first_step_has_the_largest_batch(training):
    names = ["red_circle.png", "blue_circle.png", "red_star.png", "red_square.png"]
    run = training.unet_only(training.dataset(training.pictures(names)), "--max_train_epochs=1")
    pixels = [b.plan.size.width * b.plan.size.height * len(b.plan.items) for b in run.batches]
    assert len(set(pixels)) > 1 and pixels[0] == max(pixels)


def test_f3_memory_that_spills_into_the_host_is_told_on_windows_only():
    gib = 1024**3
    assert "--gradient_checkpointing" in (spill_warning(int(11.8 * gib), 12 * gib, "win32") or "")
    assert spill_warning(6 * gib, 12 * gib, "win32") is None
    assert spill_warning(int(11.9 * gib), 12 * gib, "linux") is None


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 100 KiB while the context is open: writing one fails in the middle."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limit:
        def __enter__(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, before[1]))

        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield Limit()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_f6_a_disk_that_is_full_for_a_while_costs_these_files_and_keeps_the_earlier_ones(
    training, dataset, small_disk, monkeypatch
):
    real = sd3_train_network.Sd3NetworkTrainer.save_model

    def save_model(self, save):
        if self.step != 2:
            return real(self, save)
        with small_disk:
            return real(self, save)

    flags = ("--max_train_steps=3", "--save_every_n_steps=1", NAME)
    plain = training.unet_only(dataset, *flags)
    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "save_model", save_model)
    run = training.unet_only(dataset, *flags)
    (failure,) = [line for line in run.log if line.startswith("not saved, training goes on: ")]
    assert "x-step00000002.safetensors" in failure
    folder = training.folder / "out2"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("x_"))
    assert names == [".easel_run.json", "x-step00000001.safetensors", "x-step00000003.safetensors", "x.safetensors"]
    assert run.file.read_bytes() == plain.file.read_bytes()


def test_f6_a_state_that_cannot_be_written_leaves_the_one_before(training, dataset, small_disk, monkeypatch):
    real, left = sd3_train_network.Sd3NetworkTrainer.save_state, []

    def save_state(self, save):
        if self.step != 3:
            return real(self, save)
        with small_disk:
            result = real(self, save)
        left.extend(sorted(path for path in self.folder.glob("*-state")))
        open_folder(left[-1])
        return result

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "save_state", save_state)
    flags = ("--max_train_steps=4", "--save_every_n_steps=1", "--save_state", NAME, "--save_last_n_steps=1")
    run = training.unet_only(dataset, *flags)
    assert [line for line in run.log if line.startswith("state not saved, training goes on: ")]
    # the older one goes when the next one is there
    assert [path.name for path in left] == ["x-step00000001-state", "x-step00000002-state"]


def test_f6_a_disk_that_fills_up_in_the_optimizers_file_costs_that_state_only(training, dataset, monkeypatch):
    """The first files of the state are small, training.pt is not."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = sd3_train_network.Sd3NetworkTrainer.save_state

    def save_state(self, save):
        if self.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200 * 1024, before[1]))  # weights take 160, training.pt 345
        try:
            return real(self, save)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "save_state", save_state)
    run = training.unet_only(dataset, "--max_train_steps=3", "--save_every_n_steps=1", "--save_state", NAME)
    (line,) = [line for line in run.log if line.startswith("state not saved, training goes on: ")]
    assert "x-step00000002-state" in line
    names = sorted(path.name for path in run.file.parent.glob("*-state"))
    assert names == ["x-state", "x-step00000001-state", "x-step00000003-state"]


def test_f6_a_last_state_that_cannot_be_written_is_told_by_the_exit_code(training, dataset, small_disk, monkeypatch):
    real = sd3_train_network.Sd3NetworkTrainer.save_state

    def save_state(self, save):
        with small_disk:
            return real(self, save)

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "save_state", save_state)
    with pytest.raises(OutputError, match="the state could not be written") as end:
        training.unet_only(dataset, "--max_train_steps=1", "--save_state", NAME)
    assert end.value.exit_code == 5 and (training.folder / "out1" / "x.safetensors").exists()


@pytest.fixture
def with_states(training, dataset):
    """A run of four steps that was saved after each second one; returns its folder."""
    run = training.unet_only(dataset, "--max_train_steps=4", "--save_every_n_steps=2", "--save_state", NAME)
    return run.file.parent


@pytest.mark.parametrize("name", ["training.pt", "weights.safetensors", "train_state.json", "manifest.json"])
def test_f8_a_truncated_state_is_refused_by_name_and_auto_takes_the_one_before(training, dataset, with_states, name):
    for state in ("x-step00000004-state", "x-state"):
        path = with_states / state / name
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=re.escape(name)) as refusal:
        training.unet_only(dataset, "--max_train_steps=4", f"--resume={with_states / 'x-step00000004-state'}")
    assert refusal.value.exit_code == 2
    whole = (with_states / "x.safetensors").read_bytes()
    flags = ("--max_train_steps=4", "--save_every_n_steps=2", NAME, f"--output_dir={with_states}", "--resume=auto")
    run = training.unet_only(dataset, *flags)
    assert run.trainer.continuation.first_step == 2
    assert any(line.startswith("passed over: ") and "x-state" in line for line in run.log)
    assert run.file.read_bytes() == whole


def test_f9_a_state_that_is_not_there_is_told_at_once(refused, training, dataset, tmp_path):
    refusal = refused(dataset, f"--resume={tmp_path / 'nowhere-state'}")
    assert refusal.code == 2 and "nowhere-state is not a folder" in refusal.error and "auto" in refusal.error
    assert not refusal.has_read_weights


def test_f9_auto_without_a_state_is_a_fresh_start_and_says_so(training, dataset):
    plain = training.unet_only(dataset, "--max_train_steps=2")
    run = training.unet_only(dataset, "--max_train_steps=2", "--resume=auto")
    assert any("no complete state" in line and "begins anew" in line for line in run.log)
    assert run.file.read_bytes() == plain.file.read_bytes()


def test_f9_auto_on_a_finished_run_has_nothing_left_to_do(training, dataset, with_states):
    before = {path.name: path.stat().st_mtime_ns for path in with_states.glob("*.safetensors")}
    flags = ("--max_train_steps=4", NAME, f"--output_dir={with_states}", "--resume=auto", *CACHED)
    arguments = [w for w in training.arguments(dataset) if not w.startswith("--output_dir")]
    code = sd3_train_network.main([*arguments, *flags])
    assert code == 0
    assert {path.name: path.stat().st_mtime_ns for path in with_states.glob("*.safetensors")} == before


def test_f9_auto_writes_what_a_kill_at_the_very_end_has_left_out(training, dataset, with_states):
    before = (with_states / "x.safetensors").read_bytes()
    shutil.rmtree(with_states / "x-state")
    flags = ("--max_train_steps=4", "--save_every_n_steps=2", "--save_state", NAME, f"--output_dir={with_states}")
    training.unet_only(dataset, *flags, "--resume=auto")
    assert open_folder(with_states / "x-state").about["current_step"] == 4
    assert (with_states / "x.safetensors").read_bytes() == before


def test_f9_auto_on_a_finished_run_with_other_options_shows_the_difference(training, dataset, with_states):
    folder = f"--output_dir={with_states}"
    with pytest.raises(OptionError, match="--learning_rate: 0.002, was 0.001"):
        training.unet_only(dataset, "--max_train_steps=4", NAME, folder, "--resume=auto", "--learning_rate=2e-3")


CHANGES = {
    "learning rate": (("--learning_rate=2e-3",), None, "--learning_rate: 0.002, was 0.001"),
    "rank": (("--network_dim=8",), None, "--network_dim: 8, was 4"),
    "seed": (("--seed=6",), None, "seed: 6, was 5"),
    "length": (("--max_train_steps=9", "--lr_scheduler=cosine"), None, "steps of the run: 9, was 4 (--lr_scheduler"),
    "caption": (
        (),
        lambda folder: (folder / "red_star.txt").write_text("other"),
        "captions changed: 1 (pictures/red_star",
    ),
    "picture removed": (
        (),
        lambda folder: (folder / "red_star.png").unlink(),
        "pictures removed: 1 (pictures/red_star",
    ),
    "picture changed": (
        (),
        lambda folder: Image.new("RGB", (64, 64), "gray").save(folder / "red_star.png"),
        "pictures or masks changed: 1 (pictures/red_star",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_f10_a_changed_run_is_refused_with_the_difference_unless_allowed(training, dataset, with_states, what):
    flags, change, words = CHANGES[what]
    if change is not None:
        change(training.folder / "pictures")
    resume = ("--max_train_steps=4", f"--resume={with_states / 'x-step00000002-state'}", *flags)
    with pytest.raises(OptionError) as refusal:
        training.unet_only(dataset, *resume)
    assert words in str(refusal.value) and "--allow_changed" in str(refusal.value)
    if what == "rank":  # other weights: nothing can allow that
        with pytest.raises(CheckpointError, match="does not fit this run"):
            training.unet_only(dataset, *resume, "--allow_changed")
        return
    run = training.unet_only(dataset, *resume, "--allow_changed")
    assert run.trainer.continuation.first_step == 2
    assert any(line.startswith("--allow_changed: ") and words in line for line in run.log)
    if what == "length":
        longer = training.unet_only(dataset, *resume[1:2], "--max_train_steps=5")
        assert longer.trainer.step == 5 and "the run has 5 steps now and had 4; what is done is the same for both." in (
            longer.log
        )
    if what == "learning rate":  # and what has changed acts
        assert set(run.trainer.watch._rates["lr/unet"][2:]) == {2e-3}


def test_f10_places_logs_and_saving_may_change_freely(training, dataset, with_states, tmp_path):
    moved = tmp_path / "elsewhere" / "moved-state"
    moved.parent.mkdir()
    os.rename(with_states / "x-step00000002-state", moved)
    flags = (
        "--max_train_steps=4",
        f"--resume={moved}",
        "--save_every_n_steps=1",
        "--output_name=y",
        "--max_bad_steps=2",
    )
    run = training.unet_only(dataset, *flags, "--max_data_loader_n_workers=1", "--training_comment=other")
    assert run.file.read_bytes() == (with_states / "x.safetensors").read_bytes()


def test_f10_a_run_without_its_damaged_pictures_is_the_same_when_it_goes_on(training):
    pictures = training.pictures()
    content = (pictures / "red_star.png").read_bytes()
    (pictures / "red_star.png").write_bytes(content[:-40])
    dataset = training.dataset(pictures)
    flags = ("--on_bad_file=skip", "--max_train_steps=4", "--save_every_n_steps=2", "--save_state", NAME)
    whole = training.unet_only(dataset, *flags)
    rest = training.unet_only(dataset, *flags, f"--resume={whole.file.parent / 'x-step00000002-state'}")
    assert rest.trainer.continuation.first_step == 2 and rest.file.read_bytes() == whole.file.read_bytes()


def test_f11_names_and_counters_go_on(training, dataset, with_states):
    flags = ("--max_train_steps=4", "--save_every_n_steps=1", f"--resume={with_states / 'x-step00000002-state'}", NAME)
    run = training.unet_only(dataset, *flags, "--save_every_n_epochs=1")
    names = sorted(path.name for path in run.file.parent.glob("*.safetensors"))
    assert names == ["x-step00000003.safetensors", "x-step00000004.safetensors", "x.safetensors"]
    assert len(run.losses) == 4 and run.trainer.step == 4


def test_f11_a_step_to_begin_at_counts_as_done(training, dataset):
    flags = ("--max_train_steps=4", "--save_every_n_steps=1", NAME, "--lr_scheduler=linear")
    whole = training.unet_only(dataset, *flags)
    run = training.unet_only(dataset, *flags, "--initial_step=2")
    assert [b.plan.step for b in run.batches] == [2, 3]
    assert sorted(p.name for p in run.file.parent.glob("*step*")) == [f"x-step0000000{n}.safetensors" for n in (3, 4)]
    assert run.trainer.schedule.get_last_lr() == whole.trainer.schedule.get_last_lr()
    by_epoch = training.unet_only(dataset, *flags, "--initial_epoch=2")  # two steps an epoch
    assert by_epoch.file.read_bytes() == run.file.read_bytes()


def test_f16_errors_of_samples_do_not_end_the_run_and_three_in_a_row_end_the_samples(
    training, dataset, tmp_path, monkeypatch
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star --w 64 --h 64 --s 1 --d 1\n")

    def broken(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    flags = ("--max_train_steps=5", f"--sample_prompts={prompts}", "--sample_every_n_steps=1")
    plain = training.unet_only(dataset, "--max_train_steps=5")
    monkeypatch.setattr("library.families.sd3.family.Sd3Family.decode_latents", broken)
    run = training.unet_only(dataset, *flags)
    assert run.file.read_bytes() == plain.file.read_bytes()
    assert sum("not enough memory" in line for line in run.log) >= 3
    assert run.trainer.sampler.is_off


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932"])
def test_f20_neither_console_nor_time_zone_matters(training, warm_python, witness, tmp_path, encoding):
    pictures = training.pictures(to="Bilder é 日本 [1]")
    arguments = [
        w for w in training.arguments(training.dataset(pictures), "--max_train_steps=1") if w != "--no_metadata"
    ]
    script = tmp_path / "console.py"
    code = f"import runpy, sys, time; time.tzset(); sys.stderr.reconfigure(encoding={encoding!r}); sys.argv.pop(0)\n"
    script.write_text(code + "runpy.run_path(sys.argv[0], run_name='__main__')\n", encoding="utf-8")
    account = tmp_path / "account"
    variables = {"TZ": "Asia/Kathmandu", "SCRIPT": "sd3_train_network", "WITNESS": str(account)}
    run = warm_python.start([script, witness, *arguments], tmp_path / "printed.log", environment=variables)
    assert warm_python.wait(run) == (0,) and "UnicodeEncodeError" not in run.printed(), run.printed()
    (saved,) = json.loads((tmp_path / "account0").read_text(encoding="utf-8"))["saved"]
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", file.metadata()["modelspec.date"])


def test_f21_names_with_blanks_brackets_and_other_alphabets_work_for_everything_that_is_written(training, tmp_path):
    prompts = tmp_path / "prompts [1].txt"
    prompts.write_text("ein Stern 星 --w 64 --h 64 --s 1 --d 1\n", encoding="utf-8")
    dataset = training.dataset(training.pictures(to="br[1] é 日本"))
    out = tmp_path / "aus [2] 日本"
    flags = ("--max_train_steps=2", f"--sample_prompts={prompts}", "--sample_every_n_steps=1", "--save_state")
    run = training.unet_only(dataset, *flags, f"--output_dir={out}", "--output_name=néu [3] 星")
    names = {path.name for path in out.iterdir()}
    assert {"néu [3] 星.safetensors", "néu [3] 星-state", "néu [3] 星_curves.png", "sample"} <= names
    assert len(list((out / "sample").glob("*_1.png"))) == 2
    again = ("--output_name=néu [3] 星", f"--output_dir={out}", "--resume=auto", "--max_train_steps=2")
    before = run.file.stat().st_mtime_ns
    arguments = [word for word in training.arguments(dataset, *CACHED) if not word.startswith("--output_dir")]
    assert sd3_train_network.main([*arguments, *again]) == 0
    assert run.file.stat().st_mtime_ns == before  # the state was found, and nothing was left to do


def test_f22_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(training, dataset, warm_python):
    seen = []

    def second():
        words = [
            w for w in training.arguments(dataset, NAME, "--max_train_steps=1") if not w.startswith("--output_dir")
        ]
        command = [ROOT / "sd3_train_network.py", *words, f"--output_dir={training.folder / 'out1'}"]
        other = warm_python.start(command, training.folder / "second.log")
        seen.append((*warm_python.wait(other), other.printed()))

    words = training.arguments(dataset, *CACHED, NAME, "--max_train_steps=2")
    first = training.run_arguments(words, after={"build_loop": second})
    ((code, printed),) = seen
    assert code == 2 and f"in use by another run (process {os.getpid()} on" in printed
    assert first.file.exists()


def test_f22_overwriting_leaves_no_state_of_the_run_before(training, dataset, with_states):
    """Else --resume auto would go on with that one."""
    flags = ("--max_train_steps=2", NAME, f"--output_dir={with_states}")
    training.unet_only(dataset, *flags, "--overwrite", "--learning_rate=2e-3")
    assert not list(with_states.glob("*-state"))


def test_f22_states_of_a_run_that_was_stopped_are_kept_too(training, dataset, refused):
    with pytest.raises(EnvironmentFault):
        run_out_of_memory_in_step(training, dataset, 3, "--max_train_steps=4", NAME)
    (training.folder / "out1" / "x-step00000002.safetensors").unlink()
    refusal = refused(dataset, NAME, f"--output_dir={training.folder / 'out1'}")
    assert refusal.code == 2 and "already has x-step00000002-state of another run" in refusal.error


def test_f22_files_of_another_run_are_kept_unless_overwriting_is_asked_for(training, dataset, refused):
    first = training.unet_only(dataset, "--max_train_steps=2", NAME)
    before, folder = first.file.read_bytes(), f"--output_dir={first.file.parent}"
    refusal = refused(dataset, NAME, folder, "--max_train_steps=3")
    assert refusal.code == 2 and not refusal.has_read_weights
    assert "already has x.safetensors of another run" in refusal.error and "--overwrite" in refusal.error
    assert first.file.read_bytes() == before
    other = training.unet_only(dataset, "--max_train_steps=3", NAME, folder, "--overwrite")
    assert other.file == first.file and other.file.read_bytes() != before


def test_f22_auto_begins_the_same_run_anew_but_does_not_overwrite_another(training, dataset):
    first = training.unet_only(dataset, "--max_train_steps=2", NAME)
    folder = f"--output_dir={first.file.parent}"
    again = training.unet_only(dataset, "--max_train_steps=2", NAME, folder, "--resume=auto")
    assert again.file == first.file
    with pytest.raises(OptionError, match="of another run"):
        training.unet_only(dataset, "--max_train_steps=3", NAME, folder, "--resume=auto")


def test_f23_too_little_host_memory_is_told_before_encoders_are_read():
    gib = 1024**3
    assert "9.5 GiB" in (host_memory_note(int(9.5 * gib), 6 * gib) or "")
    assert host_memory_note(gib, 16 * gib) is None


def test_every_row_of_the_section_has_a_test():
    own = {name.split("_")[1] for name in globals() if re.match(r"test_f\d+_", name)}
    rows = {f"f{number}" for number in range(1, 25)}
    assert own | {row.lower() for row in ELSEWHERE} == rows
    for row, (file, name) in ELSEWHERE.items():
        assert f"def {name}" in (TESTS / file).read_text(encoding="utf-8"), row


def test_history_in_a_state_is_that_of_the_whole_run(training, dataset, with_states):
    progress = json.loads((with_states / "x-state" / "train_state.json").read_text(encoding="utf-8"))
    assert progress["current_step"] == 4 and len(progress["losses"]) == 4
    assert [entry["name"] for entry in progress["saved"]][:2] == [
        "x-step00000002.safetensors",
        "x-step00000004.safetensors",
    ]
    assert np.isfinite(progress["losses"]).all()
