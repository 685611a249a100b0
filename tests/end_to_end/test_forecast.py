"""What `--dry_run` foretells of memory and time, and what `--fit` makes of it, through the real scripts."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

import sd3_train
import sd3_train_network
from library.log import LOGGER_NAME
from library.memory.live_memory import LiveMemory
from library.options.spec import parse_options
from library.training.forecast.counts import Counts, Passed
from library.training.forecast.fake_passes import Passes
from library.training.forecast.fitting import Fitting, as_resumed
from library.training.forecast.forecast import Forecaster
from library.training.forecast.host_memory import HostMemory
from library.training.forecast.ladder import ladder, with_values
from library.training.forecast.run_time import time_lines

IN_MEMORY = ("--cache_latents", "--cache_text_encoder_outputs", "--network_train_unet_only")


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


@pytest.fixture
def show(training, full_training, nan_model, capsys):
    """show(dataset, *flags, script=...) looks with a model whose weights must not be read; returns stdout and log."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.handlers[:], logger.propagate, logger.level

    def run(dataset, *flags, script=sd3_train_network):
        capsys.readouterr()
        own = full_training if script is sd3_train else training
        code = script.main(own.arguments(dataset, *flags, model=nan_model))
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown

    yield run
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture
def inspected(training, nan_model):
    """inspected(dataset, *flags) is a trainer of a network that knows its data and headers."""
    return partial(look, training, sd3_train_network.Sd3NetworkTrainer, nan_model)


@pytest.fixture
def whole_inspected(full_training, nan_model):
    """As `inspected`, of a whole model."""
    return partial(look, full_training, sd3_train.Sd3FullTrainer, nan_model)


def look(training, trainer_class, model, dataset, *flags):
    """Plan the data and inspect the files."""
    arguments = training.arguments(dataset, *flags, model=model)
    trainer = trainer_class(parse_options(training.options_class, arguments, **training.script))
    with trainer.continuation:
        trainer.check_options()
        trainer.plan_run()
        trainer.inspect_files()
    return trainer


@pytest.mark.parametrize("script", [sd3_train_network, sd3_train], ids=["network", "whole"])
def test_a_dry_run_tells_memory_and_disk(dataset, show, script):
    out = show(dataset, "--dry_run", *(IN_MEMORY if script is sd3_train_network else IN_MEMORY[:2]), script=script).out
    section = out[out.index("HOST MEMORY, on the CPU") :]
    for words in ("latents, by the VAE", "texts, by t5xxl", "training", "most: ", "host memory: ", "a save"):
        assert words in section
    assert "TIME" not in section and max(map(len, section.splitlines())) <= 100


def test_fit_with_a_dry_run_proposes_flags_for_a_gpu_that_is_not_there(dataset, show):
    out = show(dataset, "--dry_run", "--fit=0.925GiB").out
    assert "GPU MEMORY" in out and "driver and libraries (assumed) 0.90 GiB" in out
    assert "TO FIT INTO 0.925GiB" in out


def test_measuring_adds_the_time_of_a_step_and_of_the_run(dataset, show):
    out = show(dataset, "--dry_run=measure", "--max_train_steps=7", *IN_MEMORY).out
    section = out[out.index("TIME, from random blocks") :]
    assert "a step with batches of 2 at 64x64: " in section and "all 7 steps: about " in section


def test_without_time_blocks_run_with_the_smallest_batch_and_that_is_told(dataset, inspected):
    trainer = inspected(dataset, "--max_train_steps=7", *IN_MEMORY)
    told = " ".join(" ".join(time_lines(trainer, Forecaster(trainer).counts(trainer.options), 0.0)).split())
    assert "a step with batches of 2 at 64x64: " in told and "all 7 steps: about " in told
    assert told.endswith("cut short: computed from blocks that ran with 1 at 64x64, so rough figures")


def test_without_a_gpu_there_is_nothing_to_fit(training, dataset):
    run = training.unet_only(dataset, "--fit=1GB", "--blocks_to_swap=auto", "--max_train_steps=1")
    assert sum("no effect without a GPU, unless with --dry_run" in line for line in run.log) == 1
    assert run.trainer.options.memory.blocks_to_swap is None and len(run.losses) == 1


@pytest.mark.parametrize("flags", [(), ("--gradient_checkpointing",)], ids=["plain", "recomputed"])
def test_a_real_training_takes_what_is_foretold(training, dataset, inspected, flags):
    """Tensors that live while steps are made, against weights beside which they are, in the forecast."""
    memory = {}

    def begin():
        memory["live"] = LiveMemory([])
        memory["live"].__enter__()

    arguments = (*IN_MEMORY, "--max_train_steps=2", "--network_dim=16", *flags)
    training.run(
        dataset, *arguments, after={"build_loop": begin, "train": lambda: memory["live"].__exit__(None, None, None)}
    )
    trainer = inspected(dataset, *arguments)
    parts = Forecaster(trainer).of(trainer.options).training.parts
    known = sum(parts[words] for words in ("gradients and activations", "optimizer", "weights", "what trains"))
    assert memory["live"].peak == pytest.approx(known, rel=0.15)


def test_what_is_given_is_not_tried(inspected, dataset):
    free = inspected(dataset, "--network_train_unet_only")
    bound = inspected(
        dataset, "--network_train_unet_only", "--gradient_checkpointing", "--blocks_to_swap=1", *IN_MEMORY
    )
    tried = [{name for values in rung.values for name in values} for rung in ladder(free, 2)]
    assert tried[0] == {"cache_latents"} and tried[-1] == {"base_weights_dtype", "blocks_to_swap"}
    names = {name for rung in ladder(bound, 2) for values in rung.values for name in values}
    assert not names & {"cache_latents", "gradient_checkpointing", "blocks_to_swap"}


def test_a_run_that_goes_on_keeps_what_its_weights_were_rounded_to(training, inspected, dataset):
    flags = (*IN_MEMORY, "--save_state", "--output_name=x", "--max_train_steps=1")
    state = training.run(dataset, *flags, "--base_weights_dtype=int8").file.parent / "x-state"
    trainer = inspected(dataset, *IN_MEMORY, "--fit=0.1GB", f"--resume={state}")
    fitting = Fitting.of(Forecaster(trainer))
    options, resumed = as_resumed(trainer, fitting)
    assert options.memory.weights_format == "int8"
    assert len(resumed.rungs) == len(fitting.rungs) - 1
    away = inspected(dataset, *IN_MEMORY, "--resume=owner/name/x-state", "--resume_from_huggingface")
    assert as_resumed(away, fitting) == (away.options, resumed)  # what is known later must not be chosen against
    other, same = as_resumed(inspected(dataset, *IN_MEMORY), fitting)
    assert other.memory.weights_format is None and same == fitting


def test_the_average_of_swapped_weights_is_kept_on_the_host(whole_inspected, dataset):
    trainer = whole_inspected(
        dataset,
        *IN_MEMORY[:2],
        "--optimizer_type=Adafactor",
        "--fused_backward_pass",
        "--max_grad_norm=0",
        "--ema_decay=0.9",
    )
    forecaster = Forecaster(trainer, torch.device("cuda"))
    swapping = with_values(trainer.options, {"blocks_to_swap": 1})
    counts = forecaster.counts(swapping)
    moved = 4 * counts.trained.in_swapped(1)
    assert 0 < moved < 4 * counts.trained.in_swapped(2) < 4 * counts.trained.count
    device = [forecaster.of(options).training.parts["average"] for options in (trainer.options, swapping)]
    host = [HostMemory(counts, options, 0).training() for options in (trainer.options, swapping)]
    assert device[0] - device[1] == moved
    assert host[1] - host[0] == moved + counts.block_bytes[1]


def test_fewer_bits_take_less(inspected, dataset):
    takes, passed = {}, Passed()
    for form in (None, "fp8", "nf4"):
        flags = () if form is None else (f"--base_weights_dtype={form}",)
        counts = Counts(inspected(dataset, *IN_MEMORY, *flags), torch.device("cpu"), passed)
        takes[form] = sum(counts.block_bytes)
        assert counts.denoiser(Passes()).blocks
        counts.trained_encoders(recomputes=False, is_freed=False)
    assert (len(passed.denoiser), len(passed.encoders)) == (3, 1)  # encoders that train do not take other bits
    assert takes[None] > 3.5 * takes["fp8"] > 3.5 * 1.7 * takes["nf4"]
