"""Files that cannot be written: in between the training goes on, at the end it is an error."""

import os
import shutil

import pytest

import sd3_train_network
from library.errors import OutputError

NAME = "--output_name=mine"
EVERY_STEP = (NAME, "--overwrite", "--max_train_steps=3", "--save_every_n_steps=1", "--save_every_n_epochs=1")


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def names(run):
    return [path.name for path in run.trainer.saved_files]


def failures(run):
    return [line for line in run.log if line.startswith("not saved, training goes on: ")]


@pytest.mark.parametrize("taken", ["mine-step00000002.safetensors", "mine-000001.safetensors"])
def test_name_that_is_taken_by_a_folder_costs_only_that_file(training, dataset, tmp_path, taken):
    (tmp_path / "out1" / taken / "inside").mkdir(parents=True)
    run = training.unet_only(dataset, *EVERY_STEP)  # two steps an epoch
    (failure,) = failures(run)
    assert taken in failure
    assert taken not in names(run) and names(run)[-1] == "mine.safetensors" and len(names(run)) == 4
    plain = training.unet_only(dataset, *EVERY_STEP)
    assert len(names(plain)) == 5
    assert run.file.read_bytes() == plain.file.read_bytes()
    assert run.losses == plain.losses


def test_output_dir_that_vanishes_for_a_while_costs_only_its_files(training, dataset, tmp_path, monkeypatch):
    out, real = tmp_path / "out1", sd3_train_network.Sd3NetworkTrainer.after_step

    def after_step(self):
        real(self)
        if self.step == 0:  # counted after this
            shutil.rmtree(out)
            out.write_text("in the way", encoding="utf-8")
        if self.step == 1:
            os.remove(out)
            out.mkdir()

    monkeypatch.setattr(sd3_train_network.Sd3NetworkTrainer, "after_step", after_step)
    run = training.unet_only(dataset, NAME, "--max_train_steps=3", "--save_every_n_steps=1")
    assert len(failures(run)) == 1
    assert names(run) == ["mine-step00000002.safetensors", "mine-step00000003.safetensors", "mine.safetensors"]


def test_final_file_that_cannot_be_written_gives_5(training, dataset, tmp_path):
    (tmp_path / "out1" / "mine.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError) as failure:
        training.unet_only(dataset, "--max_train_steps=1", NAME, "--overwrite")
    assert failure.value.exit_code == 5
    assert str(tmp_path / "out1" / "mine.safetensors") in str(failure.value)
