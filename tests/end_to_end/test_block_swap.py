"""Runs with swapped blocks are the same runs. The device is the CPU here, and its copies come late and bring poison."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from library.errors import OptionError
from library.training.trainer import Trainer
from tests.late_device import LateDevice

CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
ONE_AT_A_TIME = ("--blocks_to_swap=2", "--swap_prefetch=0")  # the model has two blocks: each takes the other's place
ALL = ("--blocks_to_swap=2", "--swap_prefetch=1")


@pytest.fixture(autouse=True)
def swapping(monkeypatch):
    monkeypatch.setattr(Trainer, "swaps", lambda trainer: bool(trainer.options.memory.swaps))
    monkeypatch.setattr("library.memory.block_swap.copy_lane", lambda device: LateDevice())


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def assert_same_run(swapped, plain):
    assert swapped.trainer.swapper is not None and plain.trainer.swapper is None
    assert swapped.losses == plain.losses
    files = sorted(file.name for file in plain.file.parent.glob("*.safetensors"))
    assert files == sorted(file.name for file in swapped.file.parent.glob("*.safetensors"))
    for name in files:
        assert (swapped.file.parent / name).read_bytes() == (plain.file.parent / name).read_bytes(), name


UNET = ("--network_train_unet_only", *CACHED)


@pytest.mark.parametrize(
    ("flags", "swap"),
    [
        (("--gradient_checkpointing", "--gradient_accumulation_steps=2"), ONE_AT_A_TIME),
        ((*UNET, "--mixed_precision=bf16", "--network_args", "emb_dims=[2,2,2,2,2,2]"), ONE_AT_A_TIME),
        (UNET, ALL),
        ((*UNET, "--base_weights_dtype=int8", "--gradient_checkpointing"), ONE_AT_A_TIME),
        ((*UNET, "--torch_compile", "--dynamo_backend=aot_eager"), ONE_AT_A_TIME),
    ],
    ids=["encoders too, recomputed, accumulated", "bf16, embedders too", "two buffers", "8 bits", "compiled"],
)
def test_adapters_train_the_same_bits(training, dataset, flags, swap):
    flags = ("--max_train_steps=2", *flags)
    assert_same_run(training.run(dataset, *flags, *swap), training.run(dataset, *flags))


SWAPPING = """
import library.memory.block_swap
from library.training.trainer import Trainer
from tests.late_device import LateDevice
Trainer.swaps = lambda trainer: bool(trainer.options.memory.swaps)
library.memory.block_swap.copy_lane = lambda device: LateDevice()
"""


def test_two_processes_swap_each_for_itself(training, launch_pair, tmp_path):
    script = tmp_path / "witness.py"
    script.write_text(SWAPPING + script.read_text(encoding="utf-8"), encoding="utf-8")
    dataset = training.dataset(training.pictures(), batch_size=1)
    flags = (*UNET, "--max_train_steps=2", "--optimizer_args", "eps=1e-4")
    plain = training.run(dataset, *flags, "--gradient_accumulation_steps=2")
    run = launch_pair(training.arguments(dataset, *flags, *ONE_AT_A_TIME))
    assert run.code == 0 and len(run.accounts) == 2, run.output
    assert "2 of 2 blocks wait in host memory" in run.output
    assert run.accounts[0]["losses"] == pytest.approx(plain.losses, rel=1e-5)
    (saved,) = run.accounts[0]["saved"]
    torch.testing.assert_close(load_file(saved), plain.weights, rtol=0, atol=1e-5)


def test_samples_validation_and_states_in_between_change_nothing(training, full_training):
    prompts = training.folder / "prompts.txt"
    prompts.write_text("a red square --w 64 --h 64 --s 2 --l 3 --d 1", encoding="utf-8")
    dataset = training.dataset(training.pictures())
    flags = (
        *(*CACHED, "--network_train_unet_only", "--max_train_steps=3", "--save_every_n_steps=2", "--save_state"),
        *(f"--sample_prompts={prompts}", "--sample_every_n_steps=1", "--validation_split=0.5", "--output_name=x"),
    )
    plain = training.run(dataset, *flags)
    for own in ((), ("--sample_blocks_to_swap=1",)):
        swapped = training.run(dataset, *flags, *ONE_AT_A_TIME, *own)
        assert_same_run(swapped, plain)
        assert swapped.trainer.sampler.num_drawn == 3
        pictures = pixels_of(plain.file.parent / "sample")
        assert len(pictures) == 4 and pixels_of(swapped.file.parent / "sample") == pictures


def pixels_of(folder):
    """Of every sample, and of the sheet of all."""
    names = sorted(folder.glob("x_*.png"))
    return [Image.open(path).tobytes() for path in names]


@pytest.mark.parametrize(
    "flags",
    [
        ("--blockwise_fused_optimizers", "--gradient_checkpointing", "--ema_decay=0.9"),
        ("--fused_backward_pass", "--mixed_precision=bf16", "--full_bf16", "--optimizer_type=Adafactor"),
        ("--fused_backward_pass", "--block_lr=0,1e-3,0,0"),
    ],
    ids=["blockwise, recomputed, average", "bf16, Adafactor", "one block trains"],
)
def test_a_whole_model_trains_saves_and_goes_on_the_same_bits(full_training, flags):
    dataset = full_training.dataset(full_training.pictures())
    flags = (*CACHED, *flags, "--max_train_steps=4", "--save_every_n_steps=2", "--save_state", "--output_name=x")
    plain = full_training.run(dataset, *flags)
    swapped = full_training.run(dataset, *flags, *ONE_AT_A_TIME)
    assert_same_run(swapped, plain)
    state = swapped.file.parent / "x-step00000002-state"
    for file in state.glob("*.safetensors"):
        assert file.read_bytes() == (plain.file.parent / state.name / file.name).read_bytes()
    for more in (ONE_AT_A_TIME, ()):
        rest = full_training.run(dataset, *flags, *more, f"--resume={state}")
        assert rest.trainer.continuation.first_step == 2 and rest.losses == plain.losses
        assert rest.file.read_bytes() == plain.file.read_bytes()


def test_what_lies_beside_a_weight_is_where_the_weight_computes(full_training):
    dataset = full_training.dataset(full_training.pictures())
    run = full_training.run(dataset, *CACHED, "--fused_backward_pass", "--max_train_steps=1", *ONE_AT_A_TIME)
    swapper, optimizer = run.trainer.swapper, run.trainer.optimizer
    assert swapper.trained
    masters = {parameter.data_ptr() for parameter in swapper.trained}
    with run.trainer.shards.receiving_state():
        assert not masters & {parameter.data_ptr() for parameter in swapper.trained}
        assert all(optimizer.state[parameter]["exp_avg"].shape == parameter.shape for parameter in swapper.trained)
    assert masters == {parameter.data_ptr() for parameter in swapper.trained}


def test_weights_that_train_and_swap_need_steps_inside_the_backward_pass(full_training):
    dataset = full_training.dataset(full_training.pictures())
    with pytest.raises(OptionError, match="--blocks_to_swap with weights that train needs --fused_backward_pass"):
        full_training.run(dataset, *CACHED, *ALL)


def test_the_way_to_the_host_is_not_used_twice(training, dataset):
    with pytest.raises(OptionError, match="--blocks_to_swap and --cpu_offload_checkpointing exclude each other"):
        training.run(dataset, *ALL, "--cpu_offload_checkpointing")
