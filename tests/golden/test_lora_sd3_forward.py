"""A LoRA file applied and merged gives the reference outputs; see data/SOURCES.d/networks.md."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from library.models.mmdit import MMDiT, config_from_shapes
from networks import lora_sd3

DATA = Path(__file__).parent / "data"
NUMBERS = json.loads((DATA / "lora_sd3_forward.json").read_text(encoding="utf-8"))
PREFIX = "model.diffusion_model."
TOLERANCE = 2e-4


def load_gz(name):
    return load(gzip.decompress((DATA / f"{name}.safetensors.gz").read_bytes()))


FORWARD = load_gz("lora_sd3_forward")
LORA = load_gz("lora_sd3_file")
OLD_SPLIT_FILE = load_gz("lora_sd3_split_qkv_file")
SPLIT_NAME = "lora_unet_joint_blocks_0_x_block_attn_qkv"


@pytest.fixture
def mmdit():
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_gz("mmdit_weights_sd35_medium_like").items()}
    with torch.device("meta"):
        model = MMDiT(config_from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}))
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def predict(mmdit):
    return mmdit(*(FORWARD[f"input.{name}"] for name in ("x", "timestep", "context", "y")))


def expect(output, name):
    torch.testing.assert_close(output, FORWARD[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_applied(mmdit, multiplier):
    expect(predict(mmdit), "attn2_head_dim_64.base")
    network, _ = lora_sd3.create_network_from_weights(multiplier, None, None, [], mmdit, weights_sd=LORA)
    network.apply_to([], mmdit)
    expect(predict(mmdit), f"attn2_head_dim_64.applied_{multiplier}")
    network.detach_all()
    expect(predict(mmdit), "attn2_head_dim_64.base")


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_merged(mmdit, multiplier):
    network, weights = lora_sd3.create_network_from_weights(
        multiplier, None, None, [], mmdit, weights_sd=LORA, for_inference=True
    )
    network.merge_to([], mmdit, weights)
    expect(predict(mmdit), f"attn2_head_dim_64.merged_{multiplier}")
    if multiplier == 1.0:
        for name in ("joint_blocks.1.x_block.attn2.proj.weight", "x_embedder.proj.weight"):
            torch.testing.assert_close(
                mmdit.get_parameter(name), FORWARD[f"merged_1.0.weight.{name}"], atol=1e-5, rtol=0
            )


def split_network(mmdit, multiplier=1.0):
    return lora_sd3.create_network(multiplier, 2, 1.0, None, [], mmdit, split_qkv="True")


def test_split_file_of_another_trainer_is_read_as_it_was_trained(mmdit):
    network = split_network(mmdit)
    network.load_saved_state(OLD_SPLIT_FILE)
    own = network.state_dict()
    prefix = "split_qkv.module_state."
    parts = {key.removeprefix(prefix): value for key, value in FORWARD.items() if key.startswith(prefix)}
    assert len(parts) == 7
    assert parts.pop(f"{SPLIT_NAME}.alpha") == 1.0
    for key, value in parts.items():
        assert torch.equal(own[key], value)


def test_reloaded_split_file_acts_as_in_training(mmdit):
    network = split_network(mmdit)
    network.load_saved_state(OLD_SPLIT_FILE)
    network.apply_to([], mmdit)
    trained = predict(mmdit)
    saved = network.saved_state()
    network.detach_all()

    assert saved[f"{SPLIT_NAME}.alpha"] == 3.0
    for key, value in OLD_SPLIT_FILE.items():
        if not key.endswith(".alpha"):
            assert torch.equal(saved[key], value)

    reloaded, _ = lora_sd3.create_network_from_weights(1.0, None, None, [], mmdit, weights_sd=saved)
    reloaded.apply_to([], mmdit)
    assert not torch.allclose(trained, FORWARD["attn2_head_dim_64.base"], atol=0.05)
    torch.testing.assert_close(predict(mmdit), trained, atol=1e-5, rtol=0)


def test_max_norm(mmdit):
    numbers = NUMBERS["max_norm"]
    name = "lora_unet_joint_blocks_0_context_block_attn_proj"
    network = lora_sd3.create_network(1.0, numbers["network_dim"], numbers["network_alpha"], None, [], mmdit)
    adapter = next(adapter for adapter in network.adapters() if adapter.name == name)
    before = {key: FORWARD[f"max_norm.before.{name}.{key}.weight"] for key in ("lora_down", "lora_up")}
    with torch.no_grad():
        for key, value in before.items():
            getattr(adapter, key).weight.copy_(value)
        for other in network.adapters():  # the reference network had values everywhere
            if other is not adapter:
                other.lora_up.weight.fill_(1.0)
    scaled, mean, greatest = network.apply_max_norm_regularization(numbers["max_norm"], "cpu")
    for key in before:
        torch.testing.assert_close(getattr(adapter, key).weight, FORWARD[f"max_norm.after.{name}.{key}.weight"])
    assert scaled == numbers["keys_scaled"] == len(list(network.adapters()))
    assert mean == pytest.approx(numbers["mean_norm"], rel=1e-5)
    assert greatest == pytest.approx(numbers["max_norm_after"], rel=1e-5)
