"""What must not change a training: how a step is cut into batches, who reads pictures, how many processes share it."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def assert_same(weights, expected):
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def moved(weights):
    """The furthest that a weight of `up` has gone from zero."""
    return max(tensor.abs().max().item() for name, tensor in weights.items() if "lora_up" in name)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 2), (1, 4)])
def test_accumulated_batches_train_what_one_batch_of_all_their_pictures_trains(training, batch_size, accumulation):
    pictures = training.pictures()  # four, all of one size
    whole = training.compare(training.dataset(pictures, batch_size=4), "--max_train_steps=5")
    flags = ("--max_train_steps=5", f"--gradient_accumulation_steps={accumulation}")
    parts = training.compare(training.dataset(pictures, batch_size=batch_size), *flags)
    assert moved(whole.weights) > 1e-3
    assert_same(parts.weights, whole.weights)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_short_last_group_counts_every_picture_the_same(training):
    """Three batches with accumulation 4 are one step of three quarters of the gradient of the mean."""
    dataset = training.dataset(training.pictures(["red_circle.png", "red_star.png", "red_square.png"]), batch_size=1)
    gradients = {}
    for accumulation in (3, 4):
        flags = ("--max_train_steps=1", "--max_grad_norm=0", *CACHED, f"--gradient_accumulation_steps={accumulation}")
        run = training.run(dataset, *flags, "--optimizer_args", "eps=1e4")  # the step is the gradient times a constant
        gradients[accumulation] = {name: t * 1e4 for name, t in run.weights.items() if "lora_up" in name}
    scaled = {name: 0.75 * tensor for name, tensor in gradients[3].items()}
    assert moved(gradients[3]) > 1e-5
    torch.testing.assert_close(gradients[4], scaled, rtol=1e-3, atol=1e-8)


def test_number_of_loader_workers_changes_no_byte(training):
    names = ["red_circle.png", "red_star.png", "white_square.jpg", "blue_circle.png"]
    random_keys = {"flip_aug": True, "random_crop": True, "shuffle_caption": True, "caption_dropout_rate": 0.2}
    dataset = training.dataset(training.pictures(names), batch_size=1, **random_keys)
    flags = ("--max_train_epochs=2", "--network_dropout=0.1")
    files = {}
    for workers in (0, 1, 2):
        run = training.run(dataset, *flags, f"--max_data_loader_n_workers={workers}")
        files[workers] = run.file.read_bytes()
    assert files[0] == files[1] == files[2]


def test_workers_that_read_caches_change_no_byte(training):
    dataset = training.dataset(training.pictures(), batch_size=1, flip_aug=True)
    flags = ("--max_train_epochs=2", *CACHED, "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
    alone = training.run(dataset, *flags)
    helped = training.run(dataset, *flags, "--max_data_loader_n_workers=2")
    assert helped.file.read_bytes() == alone.file.read_bytes()


def test_two_processes_train_what_one_trains_with_accumulation_2(training, launch_pair):
    """Three batches an epoch in two shapes: the second process has nothing to do in every second step."""
    pictures = training.pictures(["red_circle.png", "red_star.png", "blue_circle.png"])
    dataset = training.dataset(pictures, batch_size=1)
    flags = (
        "--max_train_epochs=2",
        "--optimizer_args",
        "eps=1e-4",
        "--network_args",
        "dropout=0.1",
        "module_dropout=0.5",
    )
    one = training.run(dataset, *flags, "--gradient_accumulation_steps=2")
    assert one.trainer.plan.steps.max_steps == 4
    assert moved(one.weights) > 1e-3

    arguments = training.arguments(dataset, *flags, "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
    two = launch_pair(arguments)
    assert two.code == 0, two.output
    first, second = two.accounts
    assert_same(load_file(first["saved"][0]), one.weights)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(one.losses, rel=1e-5)
    assert len(first["saved"]) == 1 and second["saved"] == []
    made = first["entries"] + second["entries"]
    assert len(made) == len(set(made)) == 6  # three pictures, three captions
    assert first["entries"] and second["entries"]
    assert [path.name for path in Path(first["saved"][0]).parent.glob("*.safetensors")] == ["last.safetensors"]


def test_accelerate_launch_of_two_processes_without_a_gpu_is_an_error(training, launch):
    """accelerate starts one process there, and says nothing."""
    dataset = training.dataset(training.pictures())
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    run = launch(training.arguments(dataset, "--max_train_steps=1"), launcher)
    assert run.code != 0
    errors = [line for line in run.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "several processes" in errors[0] and "torchrun" in errors[0]
    assert run.accounts == ()


FAULT_OF_THE_SECOND = """
import os
from library.data import loader
from library.errors import DatasetError

def unreadable(record, *_, **__):
    raise DatasetError(f"{record.path}: the disk is gone. Plug it in.")

if os.environ["RANK"] == "1":
    loader.prepare_picture = unreadable
"""


def test_fault_of_one_process_ends_both(training, launch, tmp_path):
    """The second cannot read a picture in the first step, while the first waits for its gradients."""
    script = tmp_path / "witness.py"
    script.write_text(FAULT_OF_THE_SECOND + script.read_text(encoding="utf-8"), encoding="utf-8")
    dataset = training.dataset(training.pictures(), batch_size=1)
    flags = ("--max_train_steps=2", "--network_train_unet_only", "--cache_text_encoder_outputs")
    run = launch(training.arguments(dataset, *flags), TORCHRUN)
    assert run.code != 0
    assert re.search(r"error: .*\.png: the disk is gone. Plug it in.$", run.output, re.MULTILINE), run.output
    assert run.accounts == ()
    assert not list(tmp_path.glob("out*/*.safetensors"))
