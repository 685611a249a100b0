"""Files of networks: of another package, and those of torch.save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]

CACHED = "--cache_latents"
ONE_STEP = ("--max_train_steps=1", CACHED)


def test_lycoris_names_the_only_encoder_without_a_number(training_of: Make):
    pytest.importorskip("lycoris")
    train = training_of("train_network", "sd1")
    dataset = train.dataset(train.pictures())
    flags = ("--network_module=lycoris.kohya", "--network_dim=2", "--network_args", "algo=lora", "preset=attn-mlp")
    first = train.run(dataset, *flags, *ONE_STEP)
    encoders = {name for name in first.weights if name.startswith("lora_te")}
    assert encoders and all(name.startswith("lora_te_text_model_encoder_layers_") for name in encoders)
    assert not first.trainer.network.load_weights(str(first.file))  # nothing is missing or left over


def test_a_ckpt_is_continued_and_merged_like_a_safetensors_file(training_of: Make):
    train = training_of("train_network", "sd1")
    dataset = train.dataset(train.pictures())
    first = train.run(dataset, *ONE_STEP, "--save_model_as=ckpt", "--learning_rate=1e-2")
    saved = torch.load(first.file, weights_only=True)
    again = train.run(
        dataset, *ONE_STEP, "--learning_rate=1e-12", f"--network_weights={first.file}", f"--base_weights={first.file}"
    )
    weights = again.weights
    assert all(torch.allclose(weights[name], tensor, atol=1e-6) for name, tensor in saved.items())
    merging = [index for index, line in enumerate(again.log) if line.startswith("--base_weights: merging ")]
    lists = [index for index, line in enumerate(again.log) if line.startswith("LoRA for SD1: ")]
    assert len(merging) == 1 and lists[0] == merging[0] + 1 and len(lists) == 2  # the second one is what trains
