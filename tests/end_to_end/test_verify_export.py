"""--verify_export in a training: the final file is read back and compared with the network as it was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from library.errors import OptionError
from library.loras.export_check import check_export

Make = Callable[..., Any]
FLAGS = ("--max_train_steps=2", "--learning_rate=1e-2", "--network_alpha=2", "--verify_export")


def lines_of(run):
    """What the log says of each program."""
    programs = ("ComfyUI", "Forge", "A1111", "diffusers")
    return {line.split(":")[0]: line for line in run.log if line.startswith(programs)}


def damaged(run, change):
    """The final file of a run, changed, checked against its network."""
    path = next(iter(run.trainer.folder.glob("*.safetensors")))
    before = load_file(path)
    save_file(change(before), path)
    network, family = run.trainer.network, run.trainer.family
    right = check_export(path, network.adapters(), family=family.name, depth=family.depth(run.trainer.files))
    save_file(before, path)
    return not right


def without_alpha(tensors):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}


def with_rolled_rows(tensors):
    name = next(key for key in sorted(tensors) if key.endswith("x_block_attn_qkv.lora_up.weight"))
    return tensors | {name: tensors[name].roll(1, 0)}


def test_sd3_in_the_usual_layout(training: Make):
    run = training.run(training.dataset(training.pictures()), *FLAGS, "--network_args", "split_qkv=True")
    lines = lines_of(run)
    assert "max error" in lines["ComfyUI"] and lines["ComfyUI"].startswith("ComfyUI: all ")
    assert lines["Forge"].startswith("Forge: all ") and "ignores the file" in lines["diffusers"]
    assert not any("the check has failed" in line for line in run.log)
    assert damaged(run, without_alpha) and damaged(run, with_rolled_rows) and not damaged(run, dict)


def test_sd3_in_the_layout_of_diffusers(training: Make):
    run = training.run(training.dataset(training.pictures()), *FLAGS, "--save_model_as=diffusers")
    lines = lines_of(run)
    assert lines["ComfyUI"].startswith("ComfyUI: all ") and lines["diffusers"].startswith("diffusers: all ")
    assert damaged(run, lambda t: {k: v * (2 if "lora_B" in k else 1) for k, v in t.items()})


@pytest.mark.parametrize(("script", "kind"), [("train_network", "sd1"), ("sdxl_train_network", "sdxl")])
def test_u_nets(training_of: Make, script: str, kind: str):
    train = training_of(script, kind)
    args = ("--network_args", "conv_dim=2", "conv_alpha=1")
    run = train.run(train.dataset(train.pictures()), *FLAGS, *args, "--save_precision=fp16")
    assert all(": all " in line for line in lines_of(run).values()) and len(lines_of(run)) == 4
    assert damaged(run, without_alpha)


def test_networks_that_are_no_lora_are_refused_at_once(training_of: Make):
    train = training_of("train_network", "sd1")
    with pytest.raises(OptionError, match="--verify_export knows files of LoRA only, not those of networks.oft"):
        train.run(train.dataset(train.pictures()), *FLAGS, "--network_module=networks.oft", "--network_train_unet_only")
