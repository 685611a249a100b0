"""`--network_module=lycoris.kohya`: the lycoris-lora package finds our MMDiT's layers, trains and saves."""

import importlib

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from library.errors import CheckpointError, OptionError
from library.models.mmdit import MMDiT, MMDiTConfig

lycoris = pytest.importorskip("lycoris")

CONFIG = MMDiTConfig(
    depth=2,
    num_heads=2,
    head_dim=8,
    in_channels=4,
    out_channels=4,
    context_dim=12,
    pooled_dim=10,
    frequencies=16,
    position_side=8,
    qk_norm=True,
    dual_attention=(0,),
)
ARGS = {
    "lokr": {"algo": "lokr", "factor": "4", "preset": "full"},
    "loha": {"algo": "loha", "preset": "full"},
}


@pytest.fixture
def mmdit():
    torch.manual_seed(0)
    return MMDiT(CONFIG).requires_grad_(False)


def make_clip():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, vocab_size=50)).requires_grad_(False)


def loss(mmdit):
    draw = torch.Generator().manual_seed(1)
    latents, target = torch.randn(2, 2, 4, 6, 4, generator=draw)
    context, pooled = torch.randn(2, 5, 12, generator=draw), torch.randn(2, 10, generator=draw)
    return (mmdit(latents, torch.tensor([900.0, 100.0]), context, pooled) - target).square().mean()


@pytest.mark.parametrize("algo", ARGS)
def test_trains_and_saves(algo, mmdit, tmp_path):
    module = importlib.import_module("lycoris.kohya")
    encoders = [make_clip(), make_clip()]
    before = {name: tensor.clone() for name, tensor in mmdit.state_dict().items()}
    start = loss(mmdit).item()
    network = module.create_network(1.0, 2, 1.0, None, encoders, mmdit, neuron_dropout=None, **ARGS[algo])
    network.apply_to(encoders, mmdit, True, True)
    assert sum(name.startswith("lora_unet_joint_blocks_") for name in dict(network.named_children())) == 10 * 2 - 3 + 2

    groups, names = network.prepare_optimizer_params(1e-3, 1e-2, 1e-3)
    assert names == ["textencoder", "unet"]
    optimizer = torch.optim.AdamW([{**group, "params": list(group["params"])} for group in groups])
    network.prepare_grad_etc(encoders, mmdit)
    network.on_epoch_start(encoders, mmdit)
    for _ in range(10):
        optimizer.zero_grad()
        loss(mmdit).backward()
        optimizer.step()
    assert loss(mmdit).item() < 0.99 * start
    assert all(torch.equal(before[name], tensor) for name, tensor in mmdit.state_dict().items())

    network.save_weights(str(tmp_path / "lycoris.safetensors"), torch.float16, {"ss_network_module": "lycoris.kohya"})
    with safe_open(tmp_path / "lycoris.safetensors", "pt") as file:
        keys = list(file.keys())
        assert file.metadata()["ss_network_module"] == "lycoris.kohya"
    kind = {"lokr": ".lokr_w", "loha": ".hada_w"}[algo]
    assert sum(key.startswith("lora_unet_joint_blocks_0_x_block_attn_qkv" + kind) for key in keys) > 0
    assert {key.split("_")[1] for key in keys} == {"unet", "te1", "te2"}


def test_what_the_trainer_has_to_respect(mmdit, tmp_path):
    module = importlib.import_module("lycoris.kohya")
    with pytest.raises(AttributeError):  # an encoder that is not there must be left out of the list, not None
        module.create_network(1.0, 2, 1.0, None, [None], mmdit, **ARGS["lokr"])
    network = module.create_network(1.0, 2, 1.0, None, [], mmdit, **ARGS["lokr"])
    assert not hasattr(network, "prepare_optimizer_params_with_multiple_te_lrs")
    network.apply_to([], mmdit, False, True)
    groups, names = network.prepare_optimizer_params(None, 0, None)
    assert (groups, names) == ([], [])


# In the script


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


LYCORIS = ("--network_module=lycoris.kohya", "--max_train_steps=1", "--network_args")


def test_file_of_another_algorithm_is_an_error(training, dataset):
    loha = training.unet_only(dataset, *LYCORIS, "algo=loha")
    assert any("hada_w" in name for name in loha.weights)
    with pytest.raises(CheckpointError) as refusal:
        training.unet_only(dataset, f"--network_weights={loha.file}", *LYCORIS, "algo=lokr", "factor=4")
    message = str(refusal.value)
    assert message.startswith(f"--network_weights {loha.file} does not fit the network: ") and "lokr_w" in message
    assert "\n" not in message and message.endswith("Use the arguments that it was trained with.")


def test_file_of_the_same_network_is_continued(training, dataset):
    first = training.unet_only(dataset, *LYCORIS, "algo=lokr", "factor=4")
    flags = (f"--network_weights={first.file}", "--learning_rate=1e-12", *LYCORIS, "algo=lokr", "factor=4")
    again = training.unet_only(dataset, *flags)
    torch.testing.assert_close(again.weights, first.weights, rtol=0, atol=1e-6)
    assert any(str(first.file) in line for line in again.log)


def test_argument_that_nobody_reads_is_a_warning_with_the_nearest_name(training, dataset):
    run = training.unet_only(dataset, *LYCORIS, "algoo=lokr", "factor=4", "constrain=0", "preset=full")
    (warning,) = (line for line in run.log if "has no effect" in line)
    assert warning.startswith("--network_args algoo: lycoris.kohya does not read it")
    assert warning.endswith("Did you mean algo?")


def test_value_that_the_package_does_not_know_is_one_sentence(training, dataset):
    with pytest.raises(OptionError, match=r"lycoris\.kohya cannot make a network .*KeyError: 'lokrr'"):
        training.unet_only(dataset, *LYCORIS, "algo=lokrr")
