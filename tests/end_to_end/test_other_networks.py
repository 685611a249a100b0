"""networks.dylora and networks.oft through the scripts; for networks.lora_fa there is nothing that unit tests lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]

CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs", "--learning_rate=1e-2")


def test_a_resumed_run_of_dylora_draws_as_the_unbroken_one(training_of: Make) -> None:
    train = training_of("train_network", "sd1")
    dataset = train.dataset(train.pictures())
    flags = ("--network_module=networks.dylora", *CACHED, "--gradient_checkpointing", "--max_train_steps=2")
    saving = ("--save_every_n_steps=1", "--save_state")
    whole = train.run(dataset, *flags, *saving, "--network_args", "unit=2")
    state = next(whole.file.parent.glob("*step00000001-state"))
    resumed = train.run(dataset, *flags, f"--resume={state}", "--network_args", "unit=2")
    assert resumed.losses == whole.losses
    first, second = whole.weights, resumed.weights
    assert all(torch.equal(tensor, first[key]) for key, tensor in second.items())


def test_oft_trains_beside_a_base_in_fp8(training_of: Make) -> None:
    train = training_of("sdxl_train_network", "sdxl")
    flags = ("--network_module=networks.oft", "--network_alpha=0.01", *CACHED, "--fp8_base", "--max_train_steps=2")
    run = train.run(train.dataset(train.pictures()), *flags, "--network_args", "enable_conv=True")
    weights = run.weights
    blocks = {key: tensor for key, tensor in weights.items() if key.endswith(".oft_blocks")}
    assert len(weights) == 2 * len(blocks) and all(tensor.any() for tensor in blocks.values())
    assert any(key.startswith("oft_unet_output_blocks_2_0_in_layers_2.") for key in blocks)
    assert len(set(run.losses)) == 2
